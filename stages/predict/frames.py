"""Frames of a new video that a prediction sees, and the moments that it is for.

A new video before one split, through the frozen models: what a run's predictor is given, then what came.

The encoder gets the observed window, the thinker the history. The future window goes through the encoder in
a call of its own, for comparison only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thinkjepa.cache import ClipRow, FeatureSet
from thinkjepa.cache.records import clip_name
from thinkjepa.stages.data.cutting.cuts import place
from thinkjepa.stages.data.cutting.reading import ClipRequest
from thinkjepa.stages.data.decoding.client import DecodeError, VideoDecoder, VideoInfo
from thinkjepa.stages.data.plan import PlannedVideo
from thinkjepa.stages.data.rates import measured_rate
from thinkjepa.stages.data.sampling import (
    TOLERANCE_S,
    UNSPACED,
    Times,
    history_frames,
    next_dense_frame,
    observed_frames,
    release_clip,
    window_from,
)
from thinkjepa.stages.data.videos import SourceVideo
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.extract.encoder.base import VideoEncoder
from thinkjepa.stages.extract.encoder.history import HistoryEncoder
from thinkjepa.stages.extract.thinker.kept import Kept
from thinkjepa.stages.extract.work.frames import ClipDecoding
from thinkjepa.stages.predict.models import as_stored, load_thinker, version_differences
from thinkjepa.stages.progress import Progress
from thinkjepa.stages.train.data.features import Features
from thinkjepa.stages.train.data.states import clip_tokens
from thinkjepa.stages.train.data.tokens import TokenBatch, packed

LATE_S = 1.0
"""A split at the end lies up to a frame behind the last one: no video has fewer than one a second."""


@dataclass(frozen=True, slots=True)
class SplitChoice:
    """Requested beginning of the future: a frame, a time in seconds, a row, or none for the latest one."""

    frame: int | None = None
    time_s: float | None = None
    row: ClipRequest | None = None
    """Row of a table of clips, with a segment that no frame leaves."""

    def __post_init__(self) -> None:
        if self.frame is not None and self.time_s is not None:
            raise StageError("give --split-frame or --split-time, not both")
        if self.row and (self.frame, self.time_s) != (None, None):
            raise StageError("--clips says where the future begins: leave --split-frame and --split-time out")


@dataclass(frozen=True, slots=True)
class ChosenFrames:
    """Frames of one video around one split, by index; `future` is empty where the video ends there."""

    split_frame: int
    split_time_s: float
    thinker: tuple[int, ...]
    observed: tuple[int, ...]
    observed_times_s: tuple[float, ...]
    future: tuple[int, ...]
    future_times_s: tuple[float, ...]
    """The moments that are predicted, also those past the video's end."""
    fps: float
    """Of the windows; of a video's own average rate where they were chosen by index."""
    first_frame: int = 0
    """First frame of the segment that all of them are in."""

    def after(self, first: int) -> ChosenFrames:
        """The same frames of a segment, counted in a video of which it begins at the frame `first`."""
        thinker, observed, future = (
            tuple(frame + first for frame in frames) for frames in (self.thinker, self.observed, self.future)
        )
        moved = replace(self, split_frame=self.split_frame + first, first_frame=first)
        return replace(moved, thinker=thinker, observed=observed, future=future)

    def to_json(self) -> dict[str, Any]:
        return {
            "split_frame": self.split_frame,
            "split_time_s": round(self.split_time_s, 6),
            "observed_frames": list(self.observed),
            "thinker_frames": list(self.thinker),
            "future_frames": list(self.future),
            "future_times_s": [round(time_s, 6) for time_s in self.future_times_s],
        }


def choose_frames(
    times_s: Times, split: SplitChoice, *, encoder: FeatureSet, thinker: FeatureSet | None
) -> ChosenFrames:
    """Frames by the rules that the run's features were sampled with.

    By default the future begins as late as the video still shows all of it, or at the end of a video
    that is too short for that. Raises StageError for a split with nothing before it.
    """
    dense = encoder.origin["sampling"]
    if dense["rule"] == "release":
        return _release(times_s, split, num_observed=dense["observed"], num_future=dense["future"])
    fps, num_future = float(dense["fps"]), int(dense["future"])
    spaced = dense["rule"] != UNSPACED
    chosen = _split_frame(times_s, split, future_span_s=(num_future - 1) / fps, fps=fps if spaced else None)
    observed = observed_frames(times_s, chosen, num_frames=int(dense["observed"]), fps=fps)
    start = next_dense_frame(times_s, chosen - 1, fps=fps) if spaced else chosen
    begins_s = float(times_s[start] if start < len(times_s) else times_s[chosen - 1] + 1 / fps)
    ahead_s = begins_s + np.arange(num_future) / fps
    future: tuple[int, ...] = ()
    if start < len(times_s):
        window = window_from(times_s, start, num_frames=num_future, fps=fps)
        future = tuple(window[ahead_s <= times_s[-1] + TOLERANCE_S].tolist())
    known_s = tuple(times_s[list(future)].tolist())
    return ChosenFrames(
        split_frame=chosen,
        split_time_s=float(times_s[chosen]) if chosen < len(times_s) else begins_s,
        thinker=_history(times_s, chosen, thinker),
        observed=tuple(observed.tolist()),
        observed_times_s=tuple(times_s[observed].tolist()),
        future=future,
        future_times_s=(*known_s, *ahead_s[len(known_s) :].tolist()),
        fps=fps,
    )


def repeat_warnings(times_s: Times, frames: ChosenFrames) -> list[str]:
    """Warnings of frames that the run sees more than once, because of the video's rate or its beginning."""
    windows = (frames.observed, frames.future)
    repeated = sum(int((np.diff(window) == 0).sum()) for window in windows)
    if not repeated:
        return []
    found = f"{repeated} of {sum(map(len, windows))} frames repeat the frame before them"
    begins_s = float(times_s[frames.split_frame - 1]) - (len(frames.observed) - 1) / frames.fps
    if begins_s < times_s[frames.first_frame] - TOLERANCE_S:
        what = "segment" if frames.first_frame else "video"
        span_s = float(times_s[frames.split_frame - 1]) - begins_s
        lasts_s = float(times_s[-1] - times_s[frames.first_frame])
        remedy = (
            "give a later --split-time"
            if lasts_s + TOLERANCE_S >= span_s
            else f"it takes {span_s:.2f} s, the {what} lasts {lasts_s:.2f} s"
        )
        return [f"{found}: the observed window begins before the {what} does; {remedy}"]
    rate = measured_rate(times_s)
    own = f"{rate.fps:g}" if rate else "fewer"
    return [
        f"{found}: the run reads {frames.fps:g} frames a second, the video has {own}; a run on features of "
        "--dense-fps auto or of a lower rate fits it"
    ]


def _history(times_s: Times, split_frame: int, thinker: FeatureSet | None) -> tuple[int, ...]:
    if thinker is None:
        return ()
    number = int(thinker.origin["sampling"]["frames"])
    return tuple(history_frames(times_s, split_frame, num_frames=number).tolist())


def _split_frame(times_s: Times, split: SplitChoice, *, future_span_s: float, fps: float | None) -> int:
    """The split frame that is asked for, else the last one whose future the video still shows.

    With `fps` the future starts one step of time after the last observed frame, without at the split.
    """
    number = len(times_s)
    if split.frame is not None:
        chosen = split.frame
    elif split.time_s is not None:
        if not 0 <= split.time_s - times_s[0] <= times_s[-1] - times_s[0] + LATE_S:
            raise StageError(
                f"split time {split.time_s:g} s of a video from {times_s[0]:.2f} s to {times_s[-1]:.2f} s: "
                "give one between them"
            )
        chosen = int(np.searchsorted(times_s, split.time_s - TOLERANCE_S))
    else:
        chosen = int(np.searchsorted(times_s, times_s[-1] - future_span_s + TOLERANCE_S, side="right")) - 1
        latest = chosen
        while fps is not None and chosen > 1 and next_dense_frame(times_s, chosen - 1, fps=fps) > latest:
            chosen -= 1
        chosen = chosen if chosen > 1 else number
    if not 1 < chosen <= number:
        raise StageError(
            f"split frame {chosen} of a video of {number} frames ({times_s[-1]:.2f} s): "
            f"give one from 2 to {number}"
        )
    return chosen


def _release(times_s: Times, split: SplitChoice, *, num_observed: int, num_future: int) -> ChosenFrames:
    """The published code's rule: half of the video is the future."""
    if split != SplitChoice():
        raise StageError(
            "the run's clips are split at half of the video (preset release): leave the split out"
        )
    if len(times_s) < 2:
        raise StageError(f"the video has {len(times_s)} frame, preset release needs 2 or more")
    clip = release_clip(len(times_s), num_observed=num_observed, num_future=num_future)
    future = clip.future[0]
    return ChosenFrames(
        split_frame=clip.split_frame,
        split_time_s=float(times_s[clip.split_frame]),
        thinker=tuple(clip.thinker.tolist()),
        observed=tuple(clip.observed.tolist()),
        observed_times_s=tuple(times_s[clip.observed].tolist()),
        future=tuple(future.tolist()),
        future_times_s=tuple(times_s[future].tolist()),
        fps=num_observed / max(float(times_s[clip.split_frame]), TOLERANCE_S),
    )


@dataclass(frozen=True, slots=True)
class Seen:
    """Inputs of a run's model from one video, a batch of one."""

    observed: Tensor
    pooled: Tensor | None
    tokens: TokenBatch | None
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class Watched:
    """One video before one split, for the frozen models."""

    source: SourceVideo
    info: VideoInfo
    frames: ChosenFrames
    thinker_set: FeatureSet | None
    decoder: VideoDecoder
    device: str

    def through(
        self,
        encoder: VideoEncoder,
        features: Features,
        places: Mapping[str, str | None],
        progress: Progress,
    ) -> Seen:
        """Run both frozen models, or the encoder alone where the run reads no thinker."""
        progress.begin("encoding", total=1, unit="windows")
        observed = self._encoded("observed", self._clip, encoder, features)
        warnings = version_differences(encoder.origin, features.encoder)
        progress.advance(1)
        if self.thinker_set is None:
            return Seen(observed, None, None, warnings)
        if features.source.kind == "history":
            warnings += version_differences(encoder.origin, self.thinker_set)
            return self._from_history(observed, encoder, features, warnings)
        if features.source.kind != "own":
            return self._from_source(observed, features, warnings)
        progress.note(f"loading {places.get('thinker') or self.thinker_set.source['model']} ...")
        progress.begin("thinking", total=1, unit="clips")
        thinker = load_thinker(
            self.thinker_set, features.cache.path, place=places.get("thinker"), device=self.device
        )
        states = thinker.generate([self._decoding.prepared(self._clip, thinker)])[0]
        warnings += version_differences(thinker.origin, self.thinker_set)
        progress.advance(1)
        made = states.to_features(self._clip, thinker.kept).arrays
        return self._of_states(observed, made, features, warnings)

    def _from_history(
        self, observed: Tensor, encoder: VideoEncoder, features: Features, warnings: list[str]
    ) -> Seen:
        """The encoder's features of the thinker's frames, for which no thinker runs."""
        assert self.thinker_set is not None, "the history guides this run"
        segments = self.thinker_set.origin.get("slot_segments", 0)
        history = HistoryEncoder(encoder, Kept(segments, text=False, tokens=False))
        inputs = self._decoding.prepared(self._clip, history)
        (found,) = history.run([(self._clip, inputs)], batch_size=1)
        return self._of_states(observed, found.arrays, features, warnings)

    def _of_states(
        self, observed: Tensor, made: Mapping[str, Tensor], features: Features, warnings: list[str]
    ) -> Seen:
        """Inputs from the arrays that were made of the clip, as the run reads them from the cache."""
        item = self.thinker_set
        assert item is not None, "states are of a set that the run reads"
        chosen = [item.streams.index(name) for name in features.thinker_shape.streams]
        pooled = features.of_layers(made["pooled"].float())[None, :, chosen]

        def load(name: str) -> Tensor:
            stored = as_stored(made[name], name, item)
            return features.of_layers(stored) if "layer" in item.arrays[name].dims else stored

        tokens = None
        if features.reading:
            on_grid = features.on_grid(self._known_size_px(features), step_s=self._step_s(features))
            read = clip_tokens(
                features.reading, load, held=made, on_grid=on_grid if features.reading.positioned else None
            )
            tokens = packed([read]).to(torch.device("cpu"))
        return Seen(observed, pooled, tokens, warnings)

    def _known_size_px(self, features: Features) -> tuple[int, int] | None:
        """The frames' size, None where the run learned places without that of its clips."""
        assert self.thinker_set is not None
        first = features.clips.clip_ids[0].as_py()
        known = features.cache.index(self.thinker_set.name).frame_px(first)
        return self.info.size_px if known else None

    def _step_s(self, features: Features) -> float:
        """Seconds of a latent step."""
        return features.tubelet / self.frames.fps

    def _from_source(self, observed: Tensor, features: Features, warnings: list[str]) -> Seen:
        """States of the control that the run was guided by, for which no thinker runs."""
        clip_ids, source = [self._clip.clip_id], features.source
        if unknown := [item.column for item in source.columns if clip_ids[0] not in item.class_of]:
            without = "it" if source.knows(clip_ids[0]) else "guidance"
            warnings = [
                *warnings,
                f"the run was guided by {', '.join(unknown)}, and does not know it of this video and split: "
                f"predicted without {without}",
            ]
        tokens = features.tokens(clip_ids).to(torch.device("cpu")) if features.reading else None
        return Seen(observed, features.pooled(clip_ids), tokens, warnings)

    def future_latents(self, encoder: VideoEncoder, features: Features) -> Tensor | None:
        """The true future as the run's targets are, `(1, step, patch, dim)`; None past the video's end."""
        if len(self.frames.future) < len(self.frames.future_times_s):
            return None
        future = replace(self._clip, observed_frames=self.frames.future)
        return self._encoded("future", future, encoder, features)

    def _encoded(self, array: str, clip: ClipRow, encoder: VideoEncoder, features: Features) -> Tensor:
        """The clip's only window, as the run reads it from the cache."""
        latents = encoder.encode(self._decoding.windows(clip, encoder))
        return features.transformed_latents(as_stored(latents, array, features.encoder), torch.device("cpu"))

    @property
    def _clip(self) -> ClipRow:
        """A clip without a future: there is nothing in it that could be decoded too much."""
        frames, times_s = self.frames, self.info.times_s
        return ClipRow(
            clip_id=clip_name(self.source.video_id, frames.split_frame, first_frame=frames.first_frame),
            video=self.source.name,
            video_digest=self.source.digest,
            thinker_sampling="",
            dense_sampling="",
            split_frame=frames.split_frame,
            split_time_s=frames.split_time_s,
            thinker_frames=frames.thinker,
            thinker_times_s=tuple(times_s[list(frames.thinker)].tolist()),
            observed_frames=frames.observed,
            observed_times_s=frames.observed_times_s,
            future_frames=(),
            future_times_s=(),
        )

    @property
    def _decoding(self) -> ClipDecoding:
        return ClipDecoding(self.decoder, {self.source.digest: PlannedVideo(self.source, self.info)})


def watched(
    source: SourceVideo,
    split: SplitChoice,
    run: TrainedRun,
    features: Features,
    *,
    decoder: VideoDecoder,
    device: str,
) -> Watched:
    """Choose the frames of a video. Raises StageError where it cannot be decoded or split so."""
    try:
        info = decoder.open(source.path)
    except DecodeError as error:
        raise StageError(f"--video {str(source.path)!r}: {error}") from error
    thinker = features.thinker if run.shape.thinker else None
    own_s, within, first = info.times_s, split, 0
    if split.row:
        cut = place(info.times_s, split.row)
        own_s, within, first = cut.own(info.times_s), SplitChoice(frame=cut.split - cut.first), cut.first
    frames = choose_frames(own_s, within, encoder=features.encoder, thinker=thinker).after(first)
    return Watched(source, info, frames, thinker, decoder, device)
