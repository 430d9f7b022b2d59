"""The frames of clips, decoded once and preprocessed for each frozen model.

Clips of one video overlap: the next clip's windows hold frames of this one's. What is still to come is kept,
as preprocessed, until the clips have moved past it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from thinkjepa.cache import ClipRow, Kind
from thinkjepa.stages.data.decoding.client import DecodeError, FrameStack, VideoDecoder
from thinkjepa.stages.data.plan import PlannedVideo
from thinkjepa.stages.data.videos import FileSignature, file_signature
from thinkjepa.stages.extract.encoder.base import VideoEncoder
from thinkjepa.stages.extract.thinker.contract import Scene
from thinkjepa.stages.extract.thinker.hooks import HookedThinker

RAW_BYTES = 8 * 10**6
"""Decoded frames held at a time: 1 of 1080p, 8 of 640 x 480; always one at least."""

CHANGED = "the file has changed since it was identified: run the extraction again"

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

    def __init__(self, decoder: VideoDecoder, videos: Mapping[str, PlannedVideo]) -> None:
        self._decoder = decoder
        self._videos = videos
        self._broken: dict[str, str] = {}
        self._digest = self._clip_id = ""
        self._kept: dict[tuple[Kind, int], Tensor] = {}
        """Preprocessed frames, in the windows of the last clip or by themselves."""
        self._windows: dict[Kind, list[Tensor]] = {}
        """Of the last clip, complete."""

    def open(self, clip: ClipRow) -> None:
        """Open the video of a clip that comes next; an error is told when its frames are asked for."""
        try:
            self._decoder.open(self._videos[clip.video_digest].source.path)
        except DecodeError as error:
            self._broken[clip.video_digest] = str(error)

    def look(self, clip: ClipRow, views: Sequence[View]) -> None:
        """Decode what is not at hand of a clip, each frame once for all views. Raises DecodeError."""
        self._let_go(clip, views)
        windows = [_Windows(view) for view in views]
        for item in windows:
            for index in item.places.keys() & self._kept_of(item.view.kind):
                self._put(item, index, self._kept[item.view.kind, index])
        missing = [item.places.keys() - self._kept_of(item.view.kind) for item in windows]
        for indices, frames in self._decoded(clip, sorted(frozenset().union(*missing))):
            for item, wanted in zip(windows, missing, strict=True):
                chosen = [place for place, index in enumerate(indices) if index in wanted]
                if chosen:
                    ready = item.view.prepare(_rows(frames, chosen))
                    for place, frame in zip(chosen, ready, strict=True):
                        self._put(item, indices[place], frame)
        self._windows |= {item.view.kind: item.tensors for item in windows}

    def prepared(self, clip: ClipRow, view: View) -> list[Tensor]:
        """The windows of a view, `(frame, ...)` each. Raises DecodeError."""
        if clip.clip_id != self._clip_id or view.kind not in self._windows:
            self.look(clip, [view])
        return self._windows[view.kind]

    def _put(self, windows: _Windows, index: int, frame: Tensor) -> None:
        self._kept[windows.view.kind, index] = windows.put(index, frame)

    def _kept_of(self, kind: Kind) -> set[int]:
        return {index for other, index in self._kept if other == kind}

    def _let_go(self, clip: ClipRow, views: Sequence[View]) -> None:
        """Keep what this clip needs, and of its video what later clips may need."""
        if clip.clip_id != self._clip_id:
            self._clip_id, self._windows = clip.clip_id, {}
        if clip.video_digest != self._digest:
            self._digest, self._kept = clip.video_digest, {}
            return
        needed = {(view.kind, index) for view in views for index in view.frames}
        begin = clip.observed_frames[0]
        held = sum(frame.nbytes for frame in self._kept.values())
        self._kept = {
            key: _by_itself(frame)
            for key, frame in self._kept.items()
            if key in needed or (key[1] >= begin and held <= KEPT_BYTES)
        }

    def _decoded(self, clip: ClipRow, indices: Sequence[int]) -> Iterator[tuple[Sequence[int], FrameStack]]:
        """Frames by rising index, a few at a time: the decoder is at the next ones meanwhile."""
        if not indices:
            return
        if clip.video_digest in self._broken:
            raise DecodeError(self._broken[clip.video_digest])
        video = self._videos[clip.video_digest]
        width, height = video.info.size_px
        size, start = max(1, RAW_BYTES // (width * height * 3)), 0
        try:
            for frames in self._decoder.stream(video.source.path, indices, at_once=size):
                if _signature(video.source.path) != video.source.signature:
                    raise DecodeError(CHANGED)
                yield indices[start : start + size], frames
                start += size
        except DecodeError as error:
            self._broken[clip.video_digest] = str(error)
            raise


class _Windows:
    """The windows of a view of one clip, filled frame by frame."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.tensors: list[Tensor] = []
        self.places: dict[int, list[tuple[int, int]]] = {}
        """Window and place in it of every frame; more than one where windows share it."""
        for number, window in enumerate(view.windows):
            for place, index in enumerate(window):
                self.places.setdefault(index, []).append((number, place))

    def put(self, index: int, frame: Tensor) -> Tensor:
        """Copy a frame to its places; returns one of them."""
        if not self.tensors:
            self.tensors = [frame.new_empty((len(window), *frame.shape)) for window in self.view.windows]
        for number, place in self.places[index]:
            self.tensors[number][place] = frame
        return self.tensors[number][place]


def _rows(frames: FrameStack, places: Sequence[int]) -> FrameStack:
    """Frames by rising place; neighbours are not copied."""
    first, last = places[0], places[-1]
    if last - first == len(places) - 1:
        return frames[first : last + 1]
    return frames.take(places, axis=0)  # fancy indexing would hold the interpreter's lock


def _by_itself(frame: Tensor) -> Tensor:
    """A frame without the window that it lies in."""
    return frame.clone() if frame.untyped_storage().nbytes() > frame.nbytes else frame


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
