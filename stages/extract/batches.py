"""One batch of clips through decoder and models; a clip that fails is an outcome, not the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from thinkjepa.cache import ClipFeatures, ClipRow, Failure, FailureStage, Kind
from thinkjepa.stages.data.catalog import PlannedFolder
from thinkjepa.stages.data.decode_process import DecodeError, FrameStack, VideoDecoder
from thinkjepa.stages.data.videos import FileSignature, file_signature
from thinkjepa.stages.extract.encoder import VideoEncoder
from thinkjepa.stages.extract.frozen_models import FrozenModels
from thinkjepa.stages.extract.hooked_thinker import HookedThinker
from thinkjepa.stages.extract.thinker import Scene, thought_features

Ready = TypeVar("Ready")

RAW_BYTES = 64 * 10**6
"""Decoded frames held at a time: 10 of 1080p, 2 of 4K."""

MODEL_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, KeyError)
"""What processors and models raise for an input they cannot take; anything else is a defect."""


@dataclass(slots=True)
class Outcome:
    """Features of a batch for one set, and the clips that have none."""

    features: list[ClipFeatures] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


class ClipDecoding:
    """Frames of clips, preprocessed a few at a time: 32 frames of 4K are 0.8 GB raw.

    A video that failed once is not asked again: each time-out would cost its seconds.
    """

    def __init__(self, decoder: VideoDecoder, planned: PlannedFolder) -> None:
        self._decoder = decoder
        self._planned = planned
        self._broken: dict[str, str] = {}

    def prepared(
        self, clip: ClipRow, indices: Sequence[int], prepare: Callable[[FrameStack], Tensor]
    ) -> Tensor:
        """`prepare` of the frames by index, joined along the frame axis; it treats each frame by itself.

        Raises DecodeError.
        """
        width, height = self._planned.frame_sizes[clip.video_digest]
        group = max(1, RAW_BYTES // (width * height * 3))
        parts = [
            prepare(self._frames(clip, indices[start : start + group]))
            for start in range(0, len(indices), group)
        ]
        return torch.cat(parts)

    def _frames(self, clip: ClipRow, indices: Sequence[int]) -> FrameStack:
        if clip.video_digest in self._broken:
            raise DecodeError(self._broken[clip.video_digest])
        path = self._planned.paths[clip.video_digest]
        try:
            frames = self._decoder.frames(path, indices)
            if _signature(path) != self._planned.signatures[clip.video_digest]:
                raise DecodeError("the file has changed since it was identified: run the extraction again")
            return frames
        except DecodeError as error:
            self._broken[clip.video_digest] = str(error)
            raise


def _signature(path: Path) -> FileSignature | None:
    try:
        return file_signature(path)
    except OSError:
        return None


def see(clip: ClipRow, thinker: HookedThinker, decoding: ClipDecoding) -> Scene:
    """What the thinker sees of a clip. Raises DecodeError."""
    frames = decoding.prepared(clip, clip.thinker_frames, thinker.preprocess)
    return Scene(frames, clip.thinker_times_s)


def watch(clip: ClipRow, encoder: VideoEncoder, decoding: ClipDecoding) -> list[Tensor]:
    """The encoder's windows of a clip, observed first, each preprocessed by itself. Raises DecodeError."""
    chosen = (clip.observed_frames, *clip.future_frames)
    return [decoding.prepared(clip, indices, encoder.preprocess) for indices in chosen]


def run_batch(
    batch: Sequence[ClipRow],
    missing: Mapping[Kind, frozenset[str]],
    frozen: FrozenModels,
    decoding: ClipDecoding,
    *,
    batch_size: int,
) -> dict[Kind, Outcome]:
    """Decode each clip once and run the models on those that miss their features."""
    outcomes: dict[Kind, Outcome] = {"thinker": Outcome(), "encoder": Outcome()}
    scenes: list[tuple[ClipRow, Scene]] = []
    windows: list[tuple[ClipRow, list[Tensor]]] = []
    for clip in batch:  # clip by clip: a clip's frames lie near each other, which spares seeks
        if clip.clip_id in missing.get("thinker", ()):
            with _recorded(clip, "thinker", outcomes):
                scenes.append((clip, see(clip, frozen.thinker, decoding)))
        if clip.clip_id in missing.get("encoder", ()):
            with _recorded(clip, "encoder", outcomes):
                windows.append((clip, watch(clip, frozen.encoder, decoding)))
    _forward(scenes, lambda ready: _think(ready, frozen, batch_size), "thinker", outcomes["thinker"])
    _forward(windows, lambda ready: _encode(ready, frozen, batch_size), "encoder", outcomes["encoder"])
    return outcomes


def with_video(failure: Failure, clip: ClipRow) -> Failure:
    """A failure of the cache's, which knows clips only, with the clip's video."""
    return replace(failure, video=clip.video, video_digest=clip.video_digest)


@contextmanager
def _recorded(clip: ClipRow, kind: Kind, outcomes: Mapping[Kind, Outcome]) -> Iterator[None]:
    """Record a clip that cannot be decoded or preprocessed as a failure of one set."""
    try:
        yield
    except DecodeError as error:
        outcomes[kind].failures.append(_failure(clip, "decode", str(error)))
    except MODEL_ERRORS as error:
        outcomes[kind].failures.append(_failure(clip, kind, _in_one_line(error)))


def _think(
    ready: Sequence[tuple[ClipRow, Scene]], frozen: FrozenModels, batch_size: int
) -> list[ClipFeatures]:
    thoughts = frozen.thinker.think([scene for _, scene in ready], batch_size=batch_size)
    return [
        thought_features(clip.clip_id, thought) for (clip, _), thought in zip(ready, thoughts, strict=True)
    ]


def _encode(
    ready: Sequence[tuple[ClipRow, list[Tensor]]], frozen: FrozenModels, batch_size: int
) -> list[ClipFeatures]:
    by_window = zip(*(windows for _, windows in ready), strict=True)
    observed, *future = [frozen.encoder.encode(windows, batch_size=batch_size) for windows in by_window]
    stacked = torch.stack(future, dim=1)
    return [
        ClipFeatures(clip.clip_id, {"observed": observed[place], "future": stacked[place]})
        for place, (clip, _) in enumerate(ready)
    ]


def _forward(
    ready: Sequence[tuple[ClipRow, Ready]],
    model: Callable[[Sequence[tuple[ClipRow, Ready]]], list[ClipFeatures]],
    kind: Kind,
    outcome: Outcome,
) -> None:
    """Run a model over a batch; where that fails, over each clip alone: one clip costs only itself."""
    if not ready:
        return
    try:
        outcome.features.extend(model(ready))
    except MODEL_ERRORS as error:
        if len(ready) == 1:
            outcome.failures.append(_failure(ready[0][0], kind, _in_one_line(error)))
            return
        for item in ready:
            _forward([item], model, kind, outcome)


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _failure(clip: ClipRow, stage: FailureStage, reason: str) -> Failure:
    return Failure(clip.video, stage, reason, clip_id=clip.clip_id, video_digest=clip.video_digest)
