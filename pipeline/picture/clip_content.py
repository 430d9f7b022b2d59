"""Contents of a clip's picture: its frames, its latents as colors, the thinker's norms and words.

This module collects them from a cache, and `clip` draws them.
Shape letters: T latent steps, P patches (row-major height x width), D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from thinkjepa.cache import (
    TOKEN_KINDS,
    CacheError,
    ClipRow,
    FeatureCache,
    FeatureSet,
    Kind,
    file_digest,
    set_differences,
)
from thinkjepa.pipeline.picture.latent_panels import NUM_COLORS, Colors, LatentColors
from thinkjepa.pipeline.report.names import find_clip_id
from thinkjepa.stages.data.decoding.client import DecodeError, FrameStack, VideoDecoder
from thinkjepa.stages.data.framing import Framing, set_framing
from thinkjepa.stages.errors import StageError

MAX_THINKER_FRAMES = 16

MAX_WINDOW_STEPS = 8
"""The most steps of a strip: more frames side by side are too small."""

FIRST_WINDOW = 0

THUMBNAIL_PX = 256

FRAMES_AT_ONCE = 8
"""Eight decoded frames of 4K are 200 MB; they are shrunk before the next eight are requested."""

DECODE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class ThinkerContent:
    """Input and output of the thinker.

    `norms` holds, for each stream, the L2 norm of `pooled` at each layer; None where the stream has no token.
    `frames` and `times_s` are those shown, of `num_frames`.
    """

    set_name: str
    model: str
    prompt: str
    num_frames: int
    frames: tuple[int, ...]
    times_s: tuple[float, ...]
    view: Framing | None
    """Framing of the encoder whose part of a frame it sees, None for all of it."""
    layers: tuple[int, ...]
    norms: Mapping[str, tuple[float | None, ...]]
    token_counts: Mapping[str, int]
    generated_text: str

    @property
    def named_counts(self) -> dict[str, int]:
        """Tokens by the names that a reader knows: `generated` next to `reasoning` is the answer."""
        answer = "answer" if "reasoning" in self.token_counts else "generated"
        return {answer if kind == "generated" else kind: count for kind, count in self.token_counts.items()}

    def to_json(self) -> dict[str, Any]:
        return {
            "set": self.set_name,
            "model": self.model,
            "prompt": self.prompt,
            "num_frames": self.num_frames,
            "shown": {"frames": list(self.frames), "times_s": list(self.times_s)},
            "view": self.view,
            "layers": list(self.layers),
            "pooled_norms": {stream: list(values) for stream, values in self.norms.items()},
            "token_counts": dict(self.token_counts),
            "generated_text": self.generated_text,
        }


@dataclass(frozen=True, slots=True)
class WindowContent:
    """A window of the encoder: the latent steps shown, of `num_steps`, and the first frame of each."""

    start_s: float
    end_s: float
    num_frames: int
    num_steps: int
    steps: tuple[int, ...]
    frames: tuple[int, ...]
    times_s: tuple[float, ...]
    colors: Colors

    def to_json(self) -> dict[str, Any]:
        return {
            "start_s": self.start_s,
            "end_s": self.end_s,
            "num_frames": self.num_frames,
            "num_steps": self.num_steps,
            "shown": {
                "steps": list(self.steps),
                "frames": list(self.frames),
                "times_s": list(self.times_s),
            },
        }


@dataclass(frozen=True, slots=True)
class EncoderContent:
    """Observed and first future window. `explained` is the share of variance of each color's component."""

    set_name: str
    model: str
    grid: tuple[int, int]
    num_windows: int
    explained: tuple[float, ...]
    framing: Framing | None
    """The part of a frame that the encoder sees; None in a set that did not record it."""
    observed: WindowContent
    future: WindowContent

    def to_json(self) -> dict[str, Any]:
        return {
            "set": self.set_name,
            "model": self.model,
            "grid": list(self.grid),
            "future_windows": self.num_windows,
            "window_shown": FIRST_WINDOW,
            "explained_variance": list(self.explained),
            "observed": self.observed.to_json(),
            "future": self.future.to_json(),
        }


@dataclass(frozen=True, slots=True)
class ClipContent:
    """All parts of a clip that are drawn. A part without a feature set is None.

    `thumbnails` are small RGB frames `(height, width, 3)` by frame index; empty where `frames_note` says why.
    """

    clip: ClipRow
    thinker: ThinkerContent | None
    encoder: EncoderContent | None
    thumbnails: Mapping[int, FrameStack]
    frames_note: str

    def to_json(self) -> dict[str, Any]:
        """All but the pixels."""
        return {
            "clip_id": self.clip.clip_id,
            "video": self.clip.video,
            "video_digest": self.clip.video_digest,
            "split_frame": self.clip.split_frame,
            "split_time_s": self.clip.split_time_s,
            "frames_note": self.frames_note or None,
            "thinker": self.thinker.to_json() if self.thinker else None,
            "encoder": self.encoder.to_json() if self.encoder else None,
        }


def find_clip(
    cache: FeatureCache, name: str, selectors: Sequence[str]
) -> tuple[ClipRow, str | None, str | None]:
    """A clip with the thinker set and the encoder set to show of it; None where no set of a kind holds it.

    `name` is what `find_clip_id` takes. Raises CacheError where it means no clip or several, where the clip
    has no features, or several sets hold it and none is named.
    """
    named = [cache.find_set(text).name for text in selectors]
    clip_id = find_clip_id(cache, name, set_names=named)
    kinds: tuple[Kind, Kind] = ("thinker", "encoder")
    chosen = [_holding_set(cache, clip_id, kind, named) for kind in kinds]
    rows = cache.select(*[name for name in chosen if name]).only([clip_id]) if any(chosen) else []
    if not rows:
        raise CacheError(
            f"clip {clip_id!r} has no features in {str(cache.path)!r}: thinkjepa-cache ls lists its clips"
        )
    return rows[0], chosen[0], chosen[1]


def _holding_set(cache: FeatureCache, clip_id: str, kind: Kind, named: Sequence[str]) -> str | None:
    holding = [
        name
        for name, item in cache.feature_sets.items()
        if item.kind == kind and cache.index(name).locate(clip_id) is not None
    ]
    wanted = [name for name in holding if name in named] or holding
    if len(wanted) > 1:
        apart = set_differences(cache.feature_sets[name] for name in wanted)
        listed = "; ".join(f"{name} ({settings})" for name, settings in apart.items())
        raise CacheError(f"clip {clip_id!r} is in several {kind} sets, choose with --set: {listed}")
    return wanted[0] if wanted else None


def clip_content(
    cache: FeatureCache,
    clip: ClipRow,
    *,
    thinker_set: str | None,
    encoder_set: str | None,
    videos: Path | None,
) -> ClipContent:
    """Collect the drawn parts of a clip from the named sets, and its frames from the folder `videos`.

    Frames are left out, with a note, where the video is missing or is another one. Raises
    CacheError where a named set lacks the clip, StageError where its frames are not those of `clip`.
    """
    thinker = _thinker_content(cache, _own_set(cache, thinker_set, clip), clip) if thinker_set else None
    encoder = _encoder_content(cache, _own_set(cache, encoder_set, clip), clip) if encoder_set else None
    wanted = {*thinker.frames} if thinker else set[int]()
    if encoder:
        wanted |= {*encoder.observed.frames, *encoder.future.frames}
    thumbnails, note = _thumbnails(videos, clip, sorted(wanted))
    return ClipContent(clip=clip, thinker=thinker, encoder=encoder, thumbnails=thumbnails, frames_note=note)


def _own_set(cache: FeatureCache, name: str, clip: ClipRow) -> FeatureSet:
    feature_set = cache.find_set(name)
    sampling = feature_set.origin["sampling"]["fingerprint"]
    if clip.sampling(feature_set.kind) != sampling:
        raise StageError(
            f"{clip.label}: {feature_set.name} has other frames (sampling {sampling}, this row has "
            f"{clip.sampling(feature_set.kind)}): take the clip from FeatureCache.select of the same sets"
        )
    return feature_set


def _thinker_content(cache: FeatureCache, feature_set: FeatureSet, clip: ClipRow) -> ThinkerContent:
    pooled = cache.read(feature_set.name, "pooled", [clip.clip_id])[0]
    shown = evenly(len(clip.thinker_frames), most=MAX_THINKER_FRAMES)
    return ThinkerContent(
        set_name=feature_set.name,
        model=str(feature_set.source.get("model", "")),
        prompt=str(feature_set.origin.get("prompt", "")),
        num_frames=len(clip.thinker_frames),
        frames=tuple(clip.thinker_frames[index] for index in shown),
        times_s=tuple(clip.thinker_times_s[index] for index in shown),
        view=feature_set.origin.get("preprocessing", {}).get("view"),
        layers=feature_set.layers,
        norms={stream: _norms(pooled[:, index]) for index, stream in enumerate(feature_set.streams)},
        token_counts=_token_counts(cache, feature_set, clip.clip_id),
        generated_text=cache.index(feature_set.name)[clip.clip_id].generated_text,
    )


def _token_counts(cache: FeatureCache, feature_set: FeatureSet, clip_id: str) -> dict[str, int]:
    """Tokens by kind, or of the prompt and generated where the set does not have each token's kind."""
    if "token_kind" in feature_set.arrays:
        kinds = cache.read(feature_set.name, "token_kind", [clip_id])[0]
        return {kind: int((kinds == number).sum()) for number, kind in enumerate(TOKEN_KINDS, start=1)}
    row = cache.index(feature_set.name)[clip_id]
    return {"prompt": row.prompt_token_count, "generated": row.token_count - row.prompt_token_count}


def _norms(pooled_LD: Tensor) -> tuple[float | None, ...]:
    """The norm at each layer; a stream without tokens is stored as zeros and has none."""
    norms = pooled_LD.double().norm(dim=-1).tolist()
    return tuple(norm if norm > 0 and math.isfinite(norm) else None for norm in norms)


def _encoder_content(cache: FeatureCache, feature_set: FeatureSet, clip: ClipRow) -> EncoderContent:
    observed_TPD = cache.read(feature_set.name, "observed", [clip.clip_id])[0]
    windows = cache.read(feature_set.name, "future", [clip.clip_id])[0]
    height, width = feature_set.origin["grid"]
    patches = observed_TPD.shape[1]
    if height * width != patches:
        raise StageError(
            f"feature set {feature_set.name}: grid {height} x {width} is not its {patches} patches"
        )
    both_TPD = torch.cat([observed_TPD, windows[FIRST_WINDOW]])
    axes = LatentColors.fit(both_TPD)
    colors = axes.paint(both_TPD).reshape(-1, height, width, NUM_COLORS)
    num_observed = len(observed_TPD)
    future_frames, future_times_s = clip.future_frames[FIRST_WINDOW], clip.future_times_s[FIRST_WINDOW]
    return EncoderContent(
        set_name=feature_set.name,
        model=str(feature_set.source.get("model", "")),
        grid=(height, width),
        num_windows=len(windows),
        explained=axes.explained,
        framing=set_framing(feature_set.source),
        observed=_window_content(clip.observed_frames, clip.observed_times_s, colors[:num_observed]),
        future=_window_content(future_frames, future_times_s, colors[num_observed:]),
    )


def _window_content(frames: Sequence[int], times_s: Sequence[float], colors: Colors) -> WindowContent:
    tubelet = len(frames) // len(colors)
    steps = evenly(len(colors), most=MAX_WINDOW_STEPS)
    return WindowContent(
        start_s=times_s[0],
        end_s=times_s[-1],
        num_frames=len(frames),
        num_steps=len(colors),
        steps=steps,
        frames=tuple(frames[step * tubelet] for step in steps),
        times_s=tuple(times_s[step * tubelet] for step in steps),
        colors=colors[list(steps)],
    )


def evenly(count: int, *, most: int) -> tuple[int, ...]:
    """At most `most` of the positions 0 to `count - 1`, spread evenly; of two or more, both ends."""
    return tuple(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist())


def _thumbnails(
    videos: Path | None, clip: ClipRow, indices: Sequence[int]
) -> tuple[dict[int, FrameStack], str]:
    """Small frames by index; or none, and why."""
    if not indices:
        return {}, "no feature set is shown"
    path, reason = find_video(videos, clip)
    if path is None:
        return {}, reason
    try:
        return _decoded(path, indices), ""
    except OSError as error:
        return {}, f"{str(path)!r} cannot be read: {error.strerror}"
    except DecodeError as error:
        return {}, f"{str(path)!r}: {error}"


def find_video(videos: Path | None, clip: ClipRow) -> tuple[Path | None, str]:
    """The file of a clip's video in the folder `videos`; or None, and why."""
    if videos is None:
        return None, "give the folder of the videos with --videos"
    path = videos / clip.video
    try:
        if not path.is_file():
            return None, f"{clip.video!r} is not in {str(videos)!r}"
        if file_digest(path) != clip.video_digest:
            return None, f"{str(path)!r} is not the video that was extracted: its content differs"
    except OSError as error:
        return None, f"{str(path)!r} cannot be read: {error.strerror}"
    return path, ""


def _decoded(path: Path, indices: Sequence[int]) -> dict[int, FrameStack]:
    found: dict[int, FrameStack] = {}
    with VideoDecoder(timeout_s=DECODE_TIMEOUT_S) as decoder:
        for start in range(0, len(indices), FRAMES_AT_ONCE):
            some = indices[start : start + FRAMES_AT_ONCE]
            found.update(zip(some, map(_small, decoder.frames(path, some)), strict=True))
    return found


def _small(frame: FrameStack) -> FrameStack:
    image = Image.fromarray(frame)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    return np.asarray(image)
