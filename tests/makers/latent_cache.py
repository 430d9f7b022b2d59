"""A small cache whose future can be told from the thinker's states, and from them alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from thinkjepa.cache import (
    STREAMS,
    ArraySpec,
    ClipFeatures,
    ClipRow,
    FeatureSet,
    Kind,
    VideoLabels,
    WriteSession,
    describe_set,
)
from thinkjepa.cache.records import FIRST_STREAMS
from thinkjepa.stages.data.framing import Framing
from thinkjepa.stages.data.plan import with_windows
from thinkjepa.stages.train.model.config import (
    WITHOUT_THINKER,
    LatentGrid,
    ModelShape,
    ThinkerShape,
    TrunkShape,
    Variant,
)
from thinkjepa.stages.train.settings import TrainSettings

GRID = LatentGrid(observed_steps=3, future_steps=2, height=2, width=3, dim=8)
THINKER = ThinkerShape(levels=3, dim=10)
TUBELET = 2
TINY_JEPA = TrainSettings(
    variant="jepa",
    epochs=1,
    depth=1,
    width=24,
    heads=2,
    fusion_width=16,
    head_width=16,
    device="cpu",
    tracker="none",
)
"""Settings that train in a second on such a cache."""
FPS = 10.0
TOKEN_CAPACITY = 16
SLOT_CAPACITY, TEXT_CAPACITY = 12, 8
THINKER_GRID = (2, 2)
FRAME_SLOTS = 2
FRAME_PX = (320, 240)
MASSIVE_DIM, MASSIVE = 4, 3000.0
SPLITS = (8, 20)
JOINTS = ("rightHand", "rightThumbTip", "rightIndexFingerTip")
WINDOW_FRAMES = TUBELET * GRID.future_steps

BuildCache = Callable[..., Path]
BuildShape = Callable[..., ModelShape]


@pytest.fixture
def model_shape() -> BuildShape:
    """A tiny model's shape of the given variant."""

    def build(
        variant: Variant = "thinkjepa", *, attention: str = "frame_causal", depth: int = 2
    ) -> ModelShape:
        trunk = TrunkShape(depth=depth, width=24, heads=2, attention=attention)  # type: ignore[arg-type]
        thinker = None if variant in WITHOUT_THINKER else THINKER
        return ModelShape(variant=variant, grid=GRID, trunk=trunk, thinker=thinker, fusion_width=16)

    return build


@pytest.fixture
def latent_cache(tmp_path: Path) -> BuildCache:
    """A function that writes a cache of two clips a video and returns its path.

    Each video's future is its last observed step moved up or down, and only one dim of the thinker's states
    says which. The first `labelled` videos have hand labels: joints on their way, a swaying camera. `later`
    is added to all that lies behind the last split: latents, joints and cameras. `relabelled` labels have a
    digest of their own, as corrected ones have. Hands of the first `out_of_view` videos are known in no frame
    from the first split on. A second call of the same `name` adds sets to that cache. Only sets of `kinds`
    are written. All that a `thinking` model generates is reasoning. The thinker's states of clip number
    `altered` are others. A set `with_slots` has them, text and five streams, higher by `altered_seen`.
    """

    def build(
        *,
        name: str = "cache",
        num_videos: int = 16,
        windows: int = 1,
        labelled: int = 0,
        with_tokens: bool = False,
        with_slots: bool = False,
        thinking: bool = False,
        altered: int | None = None,
        altered_seen: float = 0.0,
        later: float = 0.0,
        later_in: Collection[str] | None = None,
        relabelled: bool = False,
        out_of_view: int = 0,
        framing: Framing | None = None,
        kinds: Collection[Kind] = ("encoder", "thinker"),
    ) -> Path:
        root = tmp_path / name
        encoder = encoder_set(windows, framing)
        thinker = thinker_set(with_tokens=with_tokens, with_slots=with_slots)
        clips = [clip_row(video, split, windows) for video in range(num_videos) for split in SPLITS]
        laters = {
            clip.video_digest: later if later_in is None or clip.video_digest[:16] in later_in else 0.0
            for clip in clips
        }
        features = [
            _features(clip, number, windows, laters[clip.video_digest]) for number, clip in enumerate(clips)
        ]
        if altered is not None:
            features[altered][1].arrays["pooled"].add_(1.0)
        for number, (latents, states) in enumerate(features):
            if with_tokens:
                states = _with_tokens(states, number, thinking=thinking)
            if with_slots:
                states = with_seen(states, number, added=altered_seen)
            features[number] = latents, states
        with WriteSession(root) as session:
            session.add_clips(clips)
            labels = [_labels(video, windows, laters) for video in range(labelled)]
            session.add_labels(_changed_labels(labels, relabelled=relabelled, out_of_view=out_of_view))
            for feature_set, place in ((encoder, 0), (thinker, 1)):
                if feature_set.kind in kinds:
                    with session.writer(session.resolve(feature_set)) as writer:
                        assert not writer.append([pair[place] for pair in features])
        return root

    return build


def _changed_labels(labels: list[VideoLabels], *, relabelled: bool, out_of_view: int) -> list[VideoLabels]:
    for item in labels[:out_of_view]:
        item.confidences[SPLITS[0] :] = 0.0
    if not relabelled:
        return labels
    return [replace(item, label_digest=f"corrected {item.label_digest}") for item in labels]


def _dense_sampling(windows: int) -> dict[str, Any]:
    return with_windows({"rule": "spaced", "future": WINDOW_FRAMES, "fps": FPS}, windows)


def encoder_set(windows: int, framing: Framing | None) -> FeatureSet:
    patches = GRID.tokens_per_step
    observed = (GRID.observed_steps, patches, GRID.dim)
    future = (windows, GRID.future_steps, patches, GRID.dim)
    return describe_set(
        "encoder",
        origin={"grid": [GRID.height, GRID.width], "tubelet": TUBELET, "sampling": _dense_sampling(windows)},
        source={"model": "tiny"} | ({"framing": framing} if framing else {}),
        arrays=(
            ArraySpec("observed", ("time", "patch", "dim"), observed, observed, "float16"),
            ArraySpec("future", ("window", "time", "patch", "dim"), future, (1, *future[1:]), "float16"),
        ),
        shard_bytes=64,
        typical_clip_bytes=1,
    )


def thinker_set(*, with_tokens: bool, with_slots: bool = False) -> FeatureSet:
    streams = STREAMS if with_slots else FIRST_STREAMS
    shape = (THINKER.levels, len(streams), THINKER.dim)
    arrays = [ArraySpec("pooled", ("layer", "stream", "dim"), shape, shape, "float32")]
    if with_tokens:
        tokens = (THINKER.levels, TOKEN_CAPACITY, THINKER.dim)
        chunks = (1, TOKEN_CAPACITY // 2, THINKER.dim)
        arrays += [
            ArraySpec("tokens", ("layer", "token", "dim"), tokens, chunks, "float16"),
            ArraySpec("token_kind", ("token",), (TOKEN_CAPACITY,), (TOKEN_CAPACITY,), "uint8"),
        ]
    if with_slots:
        arrays += slot_arrays()
    kept = {"keep": ["pooled", "slots", "text"], "streams": list(streams)} if with_slots else {}
    return describe_set(
        "thinker",
        origin={"layers": [0, 1, 2], "sampling": {"fingerprint": "sparse"}, **kept},
        source={"model": "tiny"},
        arrays=tuple(arrays),
        shard_bytes=64,
        typical_clip_bytes=1,
    )


def slot_arrays() -> list[ArraySpec]:
    slots, text = (THINKER.levels, SLOT_CAPACITY, THINKER.dim), (THINKER.levels, TEXT_CAPACITY, THINKER.dim)
    return [
        ArraySpec("slots", ("layer", "slot", "dim"), slots, (1, 4, THINKER.dim), "float16"),
        ArraySpec("slot_position", ("slot", "axis"), (SLOT_CAPACITY, 4), (SLOT_CAPACITY, 4), "float32"),
        ArraySpec("text_tokens", ("layer", "text", "dim"), text, (1, 4, THINKER.dim), "float16"),
        ArraySpec("text_kind", ("text",), (TEXT_CAPACITY,), (TEXT_CAPACITY,), "uint8"),
    ]


def clip_row(video: int, split_frame: int, windows: int) -> ClipRow:
    digest = hashlib.sha256(f"video {video}".encode()).hexdigest()
    observed = tuple(range(split_frame - TUBELET * GRID.observed_steps, split_frame))
    starts = [split_frame + WINDOW_FRAMES * window for window in range(windows)]
    future = tuple(tuple(range(start, start + WINDOW_FRAMES)) for start in starts)
    return ClipRow(
        clip_id=f"{digest[:16]}@{split_frame}",
        video=f"task{video % 8}/{video}.mp4",
        video_digest=digest,
        thinker_sampling="sparse",
        dense_sampling=_dense_sampling(windows)["fingerprint"],
        split_frame=split_frame,
        split_time_s=split_frame / FPS,
        thinker_frames=(0, split_frame - 1),
        thinker_times_s=(0.0, (split_frame - 1) / FPS),
        observed_frames=observed,
        observed_times_s=tuple(frame / FPS for frame in observed),
        future_frames=future,
        future_times_s=tuple(tuple(frame / FPS for frame in window) for window in future),
    )


def _labels(video: int, windows: int, laters: Mapping[str, float]) -> VideoLabels:
    clip, num_frames = clip_row(video, SPLITS[0], windows), SPLITS[-1] + WINDOW_FRAMES * windows
    rng = np.random.default_rng(video)
    start_m, step_m = rng.normal(scale=((0.1,), (0.004,)), size=(2, len(JOINTS) * 3)).reshape(2, -1, 3)
    positions_m = (start_m + step_m * np.arange(num_frames)[:, None, None]).astype(np.float32)
    confidences = np.full((num_frames, len(JOINTS)), 0.5, dtype=np.float32)
    confidences[:, video % len(JOINTS)] = 1.0
    camera_poses = np.repeat(np.eye(4)[None], num_frames, axis=0)
    camera_poses[:, :3, 3] = rng.normal(scale=0.01, size=(num_frames, 3)).cumsum(axis=0)
    positions_m[SPLITS[-1] :] += laters[clip.video_digest]
    camera_poses[SPLITS[-1] :, :3, 3] -= laters[clip.video_digest]
    return VideoLabels(
        video_digest=clip.video_digest,
        video=clip.video,
        source="test",
        label_digest=f"labels {video}",
        reference_frame="world",
        joint_names=JOINTS,
        positions_m=positions_m,
        confidences=confidences,
        camera_poses=camera_poses,
        intrinsics=np.diag([100.0, 100.0, 1.0]),
    )


def _features(clip: ClipRow, number: int, windows: int, later: float) -> tuple[ClipFeatures, ClipFeatures]:
    generator = torch.Generator().manual_seed(number)
    direction = 1.0 if number % 2 else -1.0
    patches = GRID.tokens_per_step
    observed = torch.randn(GRID.observed_steps, patches, GRID.dim, generator=generator)
    future = (observed[-1:] + direction).expand(windows, GRID.future_steps, patches, GRID.dim).contiguous()
    future = future + later
    pooled = torch.randn(THINKER.levels, 2, THINKER.dim, generator=generator)
    pooled[..., 0] = direction
    pooled[..., MASSIVE_DIM] += MASSIVE
    if number % 5 == 0:
        pooled[:, 1] = 0.0  # nothing was generated
    latents = {"observed": observed.half(), "future": future.half()}
    return ClipFeatures(clip.clip_id, latents), ClipFeatures(clip.clip_id, {"pooled": pooled})


def _with_tokens(pooled: ClipFeatures, number: int, *, thinking: bool) -> ClipFeatures:
    """Three to nine tokens that say the direction in dim 0; the last is generated, where anything was.

    Of a `thinking` model it is reasoning.
    """
    generator = torch.Generator().manual_seed(1000 + number)
    count = 3 + number % 7
    tokens = torch.randn(THINKER.levels, count, THINKER.dim, generator=generator)
    tokens[..., 0] = pooled.arrays["pooled"][0, 0, 0]
    kinds = torch.tensor(
        [1, 2, *[2] * (count - 3), (4 if thinking else 3) if number % 5 else 1], dtype=torch.uint8
    )
    arrays = {**pooled.arrays, "tokens": tokens.half(), "token_kind": kinds}
    return ClipFeatures(pooled.clip_id, arrays, token_count=count, prompt_token_count=count - 1)


def with_seen(pooled: ClipFeatures, number: int, *, added: float = 0.0) -> ClipFeatures:
    """Five streams, slots of a grid of 2 x 2 places and of two frames, and one to three tokens of text.

    Dim 0 of each says the direction, as in the pooled states.
    """
    generator = torch.Generator().manual_seed(2000 + number)
    rows, columns = THINKER_GRID
    num_slots, num_text = rows * columns + FRAME_SLOTS, 1 + number % 3
    prompt, generated = pooled.arrays["pooled"].unbind(1)
    between = torch.randn(3, *prompt.shape, generator=generator)
    slots, text = (
        torch.randn(THINKER.levels, count, THINKER.dim, generator=generator)
        for count in (num_slots, num_text)
    )
    for states in (between, slots, text):
        states[..., 0] = prompt[0, 0]
        states += added
    places = [
        (1.0, 2.0, (row + 0.5) / rows, (column + 0.5) / columns)
        for row in range(rows)
        for column in range(columns)
    ]
    frames = [(1.5 - frame, 1.0, torch.nan, torch.nan) for frame in range(FRAME_SLOTS)]
    arrays = {
        **pooled.arrays,
        "pooled": torch.stack((prompt, *between, generated), dim=1),
        "slots": slots.half(),
        "slot_position": torch.tensor([*places, *frames]),
        "text_tokens": text.half(),
        "text_kind": torch.tensor([1, 3, 4][:num_text], dtype=torch.uint8),
    }
    return replace(pooled, arrays=arrays, slot_count=num_slots, text_count=num_text)
