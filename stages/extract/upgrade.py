"""The arrays that a thinker's set of an earlier version lacks, made of its stored tokens without a model.

The thinker's own processor tells where the visual tokens are. On blank frames of the video's size it is asked
for each clip's prompt, and has to give the very tokens that the cache has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from thinkjepa.cache import (
    CacheError,
    ClipFeatures,
    ClipRow,
    FeatureCache,
    FeatureSet,
    WriteSession,
    describe_set,
)
from thinkjepa.cache.records import STORAGE
from thinkjepa.cache.session import done_clip_ids
from thinkjepa.cache.shards.format import stored_bytes
from thinkjepa.stages.data.decoding.client import DecodeError, VideoDecoder
from thinkjepa.stages.data.videos import find_videos, identify
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.models.runtime import quiet_transformers
from thinkjepa.stages.extract.models.weights import find_model
from thinkjepa.stages.extract.settings import ModelSettings
from thinkjepa.stages.extract.thinker.contract import HiddenStates, Prompt
from thinkjepa.stages.extract.thinker.hooks import HookedThinker
from thinkjepa.stages.extract.thinker.kept import TYPICAL, Kept
from thinkjepa.stages.progress import Progress

SHARD_BYTES = 512 * 10**6

BATCH = 8
"""Clips that are committed together."""


@dataclass(frozen=True, slots=True)
class UpgradeReport:
    """The result of an upgrade: the set with more arrays, and the clips that it has or lacks."""

    source: str
    feature_set: str
    upgraded: int
    already_there: int
    missing: tuple[str, ...]
    """Clips without their video under the folder, or of one that does not open: `<clip> (<video>)`."""


def upgrade(
    cache_dir: Path,
    videos: Path,
    *,
    keep: str,
    slot_segments: int,
    selector: str = "",
    thinker: str = "",
    decode_timeout_s: float = 60.0,
    progress: Progress,
) -> UpgradeReport:
    """Write a set with the arrays that are kept today, of a thinker's set that has its tokens.

    The set of before stays as it is. An upgrade that was interrupted is continued by running it again. Raises
    StageError or CacheError where nothing can be done.
    """
    files = find_videos(videos)
    cache = FeatureCache.open(cache_dir)
    source = cache.choose_set("thinker", (selector,) if selector else ())
    _require_tokens(source)
    model = _described_thinker(source, keep=keep, slot_segments=slot_segments, thinker=thinker)
    clips = list(cache.select(source.name))
    with WriteSession(cache_dir) as session:
        target = session.resolve(_wanted(source, model.kept))
        if target.name == source.name:
            return UpgradeReport(source.name, target.name, 0, len(clips), ())
        with session.writer(target) as writer:
            done = done_clip_ids(writer)
            pending = [clip for clip in clips if clip.clip_id not in done]
            progress.begin("upgrading", total=len(pending), unit="clips")
            sizes = _frame_sizes(files, videos, pending, timeout_s=decode_timeout_s)
            found = [clip for clip in pending if clip.video_digest in sizes]
            for batch in _batches(found):
                features = [_features(cache, source, clip, sizes, model) for clip in batch]
                if refused := writer.append(features):
                    raise CacheError(f"clip {refused[0].clip_id!r} cannot be upgraded: {refused[0].reason}")
                progress.advance(len(batch))
    missing = tuple(f"{clip.clip_id} ({clip.video})" for clip in pending if clip.video_digest not in sizes)
    return UpgradeReport(source.name, target.name, len(found), len(clips) - len(pending), missing)


def _require_tokens(source: FeatureSet) -> None:
    """Raise StageError for a set whose tokens are not those that the thinker gave."""
    if "tokens" not in source.arrays:
        raise StageError(
            f"{source.name} keeps {', '.join(source.arrays)} and no tokens, of which the others are made: "
            "extract again with --keep"
        )
    if source.arrays["tokens"].encoding == "fp8":
        raise StageError(
            f"{source.name} has its tokens in 8 bits, whose means are not those of the thinker's states: "
            "extract again with --keep"
        )


def _described_thinker(source: FeatureSet, *, keep: str, slot_segments: int, thinker: str) -> HookedThinker:
    """The thinker that made a set, with its processor and without weights.

    Raises StageError where its files of preprocessing are others than then.
    """
    quiet_transformers()
    origin, preprocessing = source.origin, source.origin["preprocessing"]
    settings = ModelSettings(
        thinker=thinker or str(source.source["model"]),
        revision=str(source.source["revision"]),
        layers=",".join(map(str, source.layers)),
        prompt=origin["prompt"],
        max_new_tokens=origin["max_new_tokens"],
        thinker_size=preprocessing["short_side_px"],
        frames_as=preprocessing.get("frames_as", "auto"),
        dtype=origin["dtype"],
        keep=keep,
        slot_segments=slot_segments,
    )
    folder = find_model(settings.thinker, revision=settings.revision, role="thinker", need_weights=False)
    model = HookedThinker(
        folder,
        settings,
        dtype=str(origin["dtype"]),
        device=torch.device("cpu"),
        view=preprocessing.get("view"),
    )
    if model.preprocessing != preprocessing:
        raise StageError(
            f"--thinker {settings.thinker!r} prepares frames in another way than when {source.name} was "
            "made: name the folder or hub model that it came from"
        )
    model.load_processor()
    return model


def _wanted(source: FeatureSet, kept: Kept) -> FeatureSet:
    """The set with the same states and other arrays."""
    tokens = source.arrays["tokens"]
    arrays = kept.arrays(source.layers, width=tokens.shape[-1], dtype=tokens.dtype)
    plain = {name: value for name, value in source.origin.items() if name not in STORAGE}
    return describe_set(
        "thinker",
        origin={**plain, **kept.origin},
        source=source.source,
        arrays=arrays,
        shard_bytes=SHARD_BYTES,
        typical_clip_bytes=sum(stored_bytes(spec, TYPICAL) for spec in arrays),
        codec=tokens.codec,
    )


def _frame_sizes(
    files: Sequence[Path], folder: Path, clips: Sequence[ClipRow], *, timeout_s: float
) -> dict[str, tuple[int, int]]:
    """Width and height of the frames of the clips' videos, by digest. What does not open is left out."""
    wanted, sizes = {clip.video_digest for clip in clips}, {}
    with VideoDecoder(timeout_s=timeout_s) as decoder:
        for path in files if wanted else ():
            try:
                video = identify(path, folder=folder)
                if video.digest in wanted and video.digest not in sizes:
                    sizes[video.digest] = decoder.open(path).size_px
            except (OSError, DecodeError):
                continue
    return sizes


def _features(
    cache: FeatureCache,
    source: FeatureSet,
    clip: ClipRow,
    sizes: Mapping[str, tuple[int, int]],
    model: HookedThinker,
) -> ClipFeatures:
    """A clip's arrays, of its stored tokens. Raises StageError where the processor makes another prompt."""
    row = cache.index(source.name)[clip.clip_id]
    prompt = _blank_prompt(clip, sizes[clip.video_digest], model)
    ids = tuple(prompt.inputs["input_ids"][0].tolist())
    if ids != row.token_ids[: row.prompt_token_count]:
        raise StageError(
            f"{clip.label}: the thinker's processor makes {len(ids)} prompt tokens that are not the "
            f"{row.prompt_token_count} stored ones: install the versions that {source.name} was made with, "
            "or extract again with --keep"
        )
    tokens, kinds = (
        cache.read(source.name, array, [clip.clip_id], tokens=row.token_count)[0]
        for array in ("tokens", "token_kind")
    )
    states = HiddenStates(
        hidden_LSD=tokens,
        token_kind_S=kinds,
        token_ids=row.token_ids,
        prompt_token_count=row.prompt_token_count,
        text=row.generated_text,
        layout=prompt.layout,
    )
    return states.to_features(clip, model.kept)


def _blank_prompt(clip: ClipRow, frame_px: tuple[int, int], model: HookedThinker) -> Prompt:
    width, height = frame_px
    one = model.preprocess(np.zeros((1, height, width, 3), dtype=np.uint8))
    blank = one.expand(len(clip.thinker_frames), *one.shape[1:])
    return model.prepare(clip, [blank], frame_px=frame_px)


def _batches(clips: Sequence[ClipRow]) -> Iterator[Sequence[ClipRow]]:
    for start in range(0, len(clips), BATCH):
        yield clips[start : start + BATCH]
