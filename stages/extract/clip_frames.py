"""The frames of clips, decoded once and preprocessed for each frozen model.

Clips of one video overlap: the next clip's windows hold frames of this one's. What is still to come is kept,
as preprocessed, until the clips have moved past it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from thinkjepa.cache import ClipRow, Kind
from thinkjepa.stages.data.catalog import PlannedFolder
from thinkjepa.stages.data.decode_process import DecodeError, FrameStack, VideoDecoder
from thinkjepa.stages.data.videos import FileSignature, file_signature
from thinkjepa.stages.extract.encoder import VideoEncoder
from thinkjepa.stages.extract.hooked_thinker import HookedThinker
from thinkjepa.stages.extract.thinker import Scene

RAW_BYTES = 8 * 10**6
"""Decoded frames held at a time: 1 of 1080p, 8 of 640 x 480; always one at least."""

KEPT_BYTES = 512 * 10**6
"""Preprocessed frames kept for the next clips, at most: 2,600 of 256 x 256 pixels."""


@dataclass(frozen=True, slots=True)
class View:
    """What one model is shown of a clip: windows of frames by index, and how it takes a frame.

    `prepare` treats each frame by itself: `(frame, ...)` in, `(frame, ...)` out.
    """

    kind: Kind
    windows: Sequence[Sequence[int]]
    prepare: Callable[[FrameStack], Tensor]

    @property
    def frames(self) -> frozenset[int]:
        return frozenset(index for window in self.windows for index in window)


def thinker_view(clip: ClipRow, thinker: HookedThinker) -> View:
    return View("thinker", [clip.thinker_frames], thinker.preprocess)


def encoder_view(clip: ClipRow, encoder: VideoEncoder) -> View:
    """The observed window first; windows share frames, never a forward."""
    return View("encoder", [clip.observed_frames, *clip.future_frames], encoder.preprocess)


class ClipDecoding:
    """Frames of clips, decoded and preprocessed a few at a time: 32 frames of 1080p are 0.2 GB raw.

    A video that failed once is not asked again: each time-out would cost its seconds.
    """

    def __init__(self, decoder: VideoDecoder, planned: PlannedFolder) -> None:
        self._decoder = decoder
        self._planned = planned
        self._broken: dict[str, str] = {}
        self._digest = ""
        self._kept: dict[tuple[Kind, int], Tensor] = {}

    def look(self, clip: ClipRow, views: Sequence[View]) -> None:
        """Decode what is not at hand of a clip, each frame once for all views. Raises DecodeError."""
        self._let_go(clip, views)
        wanted = {
            view.kind: {index for index in view.frames if (view.kind, index) not in self._kept}
            for view in views
        }
        for group in self._groups(clip, sorted(frozenset().union(*wanted.values()))):
            frames = self._frames(clip, group)
            for view in views:
                places = [place for place, index in enumerate(group) if index in wanted[view.kind]]
                if places:
                    ready = view.prepare(frames.take(places, axis=0))  # fancy indexing holds the lock
                    # A frame of its own each: a slice would keep the whole group alive.
                    self._kept |= {
                        (view.kind, group[place]): frame.clone()
                        for place, frame in zip(places, ready, strict=True)
                    }

    def prepared(self, clip: ClipRow, view: View) -> list[Tensor]:
        """The windows of a view, `(frame, ...)` each. Raises DecodeError."""
        if clip.video_digest != self._digest or any(
            (view.kind, index) not in self._kept for index in view.frames
        ):
            self.look(clip, [view])
        return [torch.stack([self._kept[view.kind, index] for index in window]) for window in view.windows]

    def _let_go(self, clip: ClipRow, views: Sequence[View]) -> None:
        """Keep what this clip needs, and of its video what later clips may need."""
        if clip.video_digest != self._digest:
            self._digest, self._kept = clip.video_digest, {}
            return
        needed = {(view.kind, index) for view in views for index in view.frames}
        begin = clip.observed_frames[0]
        held = sum(frame.nbytes for frame in self._kept.values())
        self._kept = {
            key: frame
            for key, frame in self._kept.items()
            if key in needed or (key[1] >= begin and held <= KEPT_BYTES)
        }

    def _groups(self, clip: ClipRow, indices: Sequence[int]) -> Iterator[Sequence[int]]:
        width, height = self._planned.frame_sizes[clip.video_digest]
        size = max(1, RAW_BYTES // (width * height * 3))
        for start in range(0, len(indices), size):
            yield indices[start : start + size]

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
    (frames,) = decoding.prepared(clip, thinker_view(clip, thinker))
    return Scene(frames, clip.thinker_times_s)


def watch(clip: ClipRow, encoder: VideoEncoder, decoding: ClipDecoding) -> list[Tensor]:
    """The encoder's windows of a clip, observed first. Raises DecodeError."""
    return decoding.prepared(clip, encoder_view(clip, encoder))
