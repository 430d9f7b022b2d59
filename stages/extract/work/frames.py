"""The frames of clips, decoded once and preprocessed for each frozen model.

Clips of one video overlap: the next clip's windows hold frames of this one's. Preprocessed frames that later
clips may need are kept until the clips have moved past them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from thinkjepa.cache import ClipRow, Kind
from thinkjepa.stages.data.decoding.client import DecodeError, FrameStack, VideoDecoder
from thinkjepa.stages.data.plan import PlannedVideo
from thinkjepa.stages.data.videos import FileSignature, file_signature
from thinkjepa.stages.extract.models.pair import FrozenModel

RAW_BYTES = 8 * 10**6
"""Decoded frames held at a time: 1 of 1080p, 8 of 640 x 480, always one at least."""

CHANGED = "the file has changed since it was identified: run the extraction again"

KEPT_BYTES = 512 * 10**6
"""Preprocessed frames kept for the next clips, at most: 2,600 of 256 x 256 pixels."""


class ClipDecoding:
    """Frames of clips, decoded and preprocessed a few at a time: 32 frames of 1080p are 0.2 GB raw.

    A video that failed once is not opened again: each time-out would cost its seconds.
    """

    def __init__(self, decoder: VideoDecoder, videos: Mapping[str, PlannedVideo]) -> None:
        self._decoder = decoder
        self._videos = videos
        self._broken: dict[str, str] = {}
        self._digest = self._clip_id = ""
        self._kept: dict[tuple[Kind, int], Tensor] = {}
        """Preprocessed frames, in the windows of the last clip or by themselves."""
        self._windows: dict[Kind, list[Tensor]] = {}
        """Complete windows of the last clip."""

    def open(self, clip: ClipRow) -> None:
        """Open the video of the next clip. An error is raised when its frames are loaded."""
        try:
            self._decoder.open(self._videos[clip.video_digest].source.path)
        except DecodeError as error:
            self._broken[clip.video_digest] = str(error)

    def load(self, clip: ClipRow, models: Sequence[FrozenModel]) -> None:
        """Decode the frames of a clip that are not kept, each once for all models. Raises DecodeError."""
        fillings = [_Filling(model, model.windows(clip)) for model in models]
        self._release(clip, {(item.kind, index) for item in fillings for index in item.positions})
        for item in fillings:
            for index in item.positions.keys() & self._kept_of(item.kind):
                self._put(item, index, self._kept[item.kind, index])
        missing = [item.positions.keys() - self._kept_of(item.kind) for item in fillings]
        for indices, frames in self._decoded(clip, sorted(frozenset().union(*missing))):
            for item, wanted in zip(fillings, missing, strict=True):
                chosen = [row for row, index in enumerate(indices) if index in wanted]
                if chosen:
                    ready = item.model.preprocess(_rows(frames, chosen))
                    for row, frame in zip(chosen, ready, strict=True):
                        self._put(item, indices[row], frame)
        self._windows |= {item.kind: item.tensors for item in fillings}

    def windows(self, clip: ClipRow, model: FrozenModel) -> list[Tensor]:
        """The preprocessed windows of a clip for a model, `(frame, ...)` each. Raises DecodeError."""
        if clip.clip_id != self._clip_id or model.kind not in self._windows:
            self.load(clip, [model])
        return self._windows[model.kind]

    def prepared(self, clip: ClipRow, model: FrozenModel) -> Any:
        """The inputs of a model for a clip. Raises DecodeError, or the processor's own errors."""
        size_px = self._videos[clip.video_digest].info.size_px
        return model.prepare(clip, self.windows(clip, model), frame_px=size_px)

    def _put(self, filling: _Filling, index: int, frame: Tensor) -> None:
        self._kept[filling.kind, index] = filling.put(index, frame)

    def _kept_of(self, kind: Kind) -> set[int]:
        return {index for other, index in self._kept if other == kind}

    def _release(self, clip: ClipRow, needed: set[tuple[Kind, int]]) -> None:
        """Keep the frames that this clip needs, and those of its video that later clips may need."""
        if clip.clip_id != self._clip_id:
            self._clip_id, self._windows = clip.clip_id, {}
        if clip.video_digest != self._digest:
            self._digest, self._kept = clip.video_digest, {}
            return
        begin = clip.observed_frames[0]
        held = sum(frame.nbytes for frame in self._kept.values())
        self._kept = {
            key: _by_itself(frame)
            for key, frame in self._kept.items()
            if key in needed or (key[1] >= begin and held <= KEPT_BYTES)
        }

    def _decoded(self, clip: ClipRow, indices: Sequence[int]) -> Iterator[tuple[Sequence[int], FrameStack]]:
        """Frames by rising index, a few at a time, while the decoder works on the next ones."""
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


class _Filling:
    """The windows of one clip for one model, filled frame by frame."""

    def __init__(self, model: FrozenModel, windows: Sequence[Sequence[int]]) -> None:
        self.model = model
        self.kind = model.kind
        self.tensors: list[Tensor] = []
        self._lengths = [len(window) for window in windows]
        self.positions: dict[int, list[tuple[int, int]]] = {}
        """Window and position in it of every frame. Windows may share a frame."""
        for number, window in enumerate(windows):
            for position, index in enumerate(window):
                self.positions.setdefault(index, []).append((number, position))

    def put(self, index: int, frame: Tensor) -> Tensor:
        """Copy a frame to its positions. Returns one of the copies."""
        if not self.tensors:
            self.tensors = [frame.new_empty((length, *frame.shape)) for length in self._lengths]
        for number, position in self.positions[index]:
            self.tensors[number][position] = frame
        return self.tensors[number][position]


def _rows(frames: FrameStack, rows: Sequence[int]) -> FrameStack:
    """Some rows in rising order. Neighbors are not copied."""
    first, last = rows[0], rows[-1]
    if last - first == len(rows) - 1:
        return frames[first : last + 1]
    return frames.take(rows, axis=0)  # fancy indexing would hold the interpreter's lock


def _by_itself(frame: Tensor) -> Tensor:
    """A frame without the window that holds it."""
    return frame.clone() if frame.untyped_storage().nbytes() > frame.nbytes else frame


def _signature(path: Path) -> FileSignature | None:
    try:
        return file_signature(path)
    except OSError:
        return None
