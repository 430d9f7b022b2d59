"""One batch of clips through decoder and models; a clip that fails is an outcome, not the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from thinkjepa.cache import ClipFeatures, ClipRow, Failure, FailureStage, Kind
from thinkjepa.stages.data.decode_process import DecodeError, FrameStack, VideoDecoder
from thinkjepa.stages.extract.frozen_models import FrozenModels
from thinkjepa.stages.extract.thinker import Scene, thought_features

Ready = TypeVar("Ready")


@dataclass(slots=True)
class Outcome:
    """Features of a batch for one set, and the clips that have none."""

    features: list[ClipFeatures] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


class ClipDecoding:
    """Frames of clips. A video that failed once is not asked again: each time-out would cost its seconds."""

    def __init__(self, decoder: VideoDecoder, paths: Mapping[str, Path]) -> None:
        self._decoder = decoder
        self._paths = paths
        self._broken: dict[str, str] = {}

    def frames(self, clip: ClipRow, indices: Sequence[int]) -> FrameStack:
        """Frames `(len(indices), height, width, 3)`. Raises DecodeError."""
        if clip.video_digest in self._broken:
            raise DecodeError(self._broken[clip.video_digest])
        try:
            return self._decoder.frames(self._paths[clip.video_digest], indices)
        except DecodeError as error:
            self._broken[clip.video_digest] = str(error)
            raise


def run_batch(
    batch: Sequence[ClipRow],
    missing: Mapping[Kind, frozenset[str]],
    frozen: FrozenModels,
    decoding: ClipDecoding,
) -> dict[Kind, Outcome]:
    """Decode each clip once and run the models on those that miss their features."""
    outcomes: dict[Kind, Outcome] = {"thinker": Outcome(), "encoder": Outcome()}
    scenes: list[tuple[ClipRow, Scene]] = []
    windows: list[tuple[ClipRow, list[Tensor]]] = []
    for clip in batch:
        kinds: list[Kind] = [kind for kind, ids in missing.items() if clip.clip_id in ids]
        try:
            if "thinker" in kinds:
                scene = Scene(decoding.frames(clip, clip.thinker_frames), clip.thinker_times_s)
            if "encoder" in kinds:
                pixels = _windows(clip, frozen, decoding)
        except DecodeError as error:
            for kind in kinds:
                outcomes[kind].failures.append(_failure(clip, "decode", str(error)))
            continue
        if "thinker" in kinds:
            scenes.append((clip, scene))
        if "encoder" in kinds:
            windows.append((clip, pixels))
    _forward(scenes, lambda ready: _think(ready, frozen), "thinker", outcomes["thinker"])
    _forward(windows, lambda ready: _encode(ready, frozen), "encoder", outcomes["encoder"])
    return outcomes


def with_video(failure: Failure, clip: ClipRow) -> Failure:
    """A failure of the cache's, which knows clips only, with the clip's video."""
    return replace(failure, video=clip.video, video_digest=clip.video_digest)


def _windows(clip: ClipRow, frozen: FrozenModels, decoding: ClipDecoding) -> list[Tensor]:
    """The observed window and the future windows, each preprocessed by itself."""
    chosen = (clip.observed_frames, *clip.future_frames)
    return [frozen.encoder.preprocess(decoding.frames(clip, indices)) for indices in chosen]


def _think(ready: Sequence[tuple[ClipRow, Scene]], frozen: FrozenModels) -> list[ClipFeatures]:
    thoughts = frozen.thinker.think([scene for _, scene in ready])
    return [
        thought_features(clip.clip_id, thought) for (clip, _), thought in zip(ready, thoughts, strict=True)
    ]


def _encode(ready: Sequence[tuple[ClipRow, list[Tensor]]], frozen: FrozenModels) -> list[ClipFeatures]:
    by_window = zip(*(windows for _, windows in ready), strict=True)
    observed, *future = [frozen.encoder.encode(windows) for windows in by_window]
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
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
        if len(ready) == 1:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            outcome.failures.append(_failure(ready[0][0], kind, reason))
            return
        for item in ready:
            _forward([item], model, kind, outcome)


def _failure(clip: ClipRow, stage: FailureStage, reason: str) -> Failure:
    return Failure(clip.video, stage, reason, clip_id=clip.clip_id, video_digest=clip.video_digest)
