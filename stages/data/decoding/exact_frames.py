"""Frames of one video by index, each proven by the presentation time that the decoder itself gives it.

Counting decoded frames is not enough: a container may promise frames that do not decode, start in the
middle of a group of pictures, or hide frames by an edit list, and a reader that counts then answers
with the wrong pictures and no error. Imports nothing of the project that is slow to import, like the process
it lives in.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt

from thinkjepa.stages.data.rates import measured_rate

Image = npt.NDArray[np.uint8]

FORMATS = "mov,matroska,webm,avi,mpegts,flv"
"""What is opened, whatever a file is called: a playlist renamed to .mp4 would lead to other files."""

VP8_SHOWN_BIT = 0x10
"""In the first byte of a VP8 frame (RFC 6386, 9.1). Later codecs pack hidden frames into shown ones."""

START = -1
"""Number of a key frame that stands for the start of the file."""

WORTH_A_SEEK = 16
"""Frames that a seek must save: it empties the decoder's pipeline, which holds about one frame a core."""

QUARTER_TURN_DEG = 90

SUSPECT_FRAMES = 128
"""Decoded at most where a video may carry wrong times: B-frames come within the first dozen, or later in a
video that begins with a still."""


def missing_decoders(codecs: Sequence[str]) -> list[str]:
    """Those of some codecs, by libav's names, that cannot be decoded here."""
    missing = []
    for name in codecs:
        try:
            av.codec.Codec(name, "r")
        except av.codec.codec.UnknownCodecError:
            missing.append(name)
    return missing


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """Ticks of the stream's clock: of every frame that is shown, and of the key frames; both sorted."""

    shown: list[int]
    keys: list[int]
    is_suspect: bool
    """Whether times rise in the order of the file although frames are reordered: they may be of decoding."""


class ExactFrames:
    """One open video, decoded by so many threads; 0: one for every core.

    Raises ValueError, or whatever libav raises, with the reason.
    """

    def __init__(self, path: str, *, threads: int = 0) -> None:
        self._path = path
        self._threads = threads
        self._open()
        self._index = _read_index(self._container, self._stream)
        self._seek(START)
        self._size: tuple[int, int] | None = None
        self._image(self._index.shown[-1])  # a container that promises more than it holds is told here
        self.first = self._image(self._index.shown[0])
        """The first frame `(height, width, 3)`, RGB, upright."""
        if self._index.is_suspect:
            self._image(self._index.shown[:SUSPECT_FRAMES][-1])

    @property
    def times_s(self) -> npt.NDArray[np.float64]:
        """Presentation time of each frame, `(frame,)` in seconds after the first one."""
        ticks = np.array(self._index.shown, dtype=np.int64)
        times_s: npt.NDArray[np.float64] = (ticks - ticks[0]) * float(self._clock)
        return times_s

    def images(self, indices: Iterable[int]) -> Iterator[Image]:
        """Frames `(height, width, 3)`, RGB, upright, one by one; fast where indices rise."""
        return (self._image(self._index.shown[index]) for index in indices)

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()

    def _open(self) -> None:
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        self._container = av.open(self._path, options=options)
        stream = self._container.streams.best("video")
        if not isinstance(stream, av.VideoStream) or stream.time_base is None:
            raise ValueError("the file has no video stream")
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = self._threads
        self._stream = stream
        self._clock: Fraction = stream.time_base
        self._restart_decoding()

    def _restart_decoding(self) -> None:
        self._decoded = self._container.decode(self._stream)
        self._landing: int | None = None  # the first tick that was decoded since
        self._position: int | None = None
        self._damaged = False

    def _image(self, tick: int) -> Image:
        """The frame shown at `tick`: decoded on from where we are, else from a key frame before it.

        From the last key frame; where the frame does not come, from the one before that (the last one may
        depend on it); and from the start, where the container sought too far.
        """
        key = bisect.bisect_right(self._index.keys, tick) - 1
        if self._is_ahead(tick, self._index.keys[key]):
            image = self._advance(tick)
            if image is not None:
                return image
        for number in (key, key - 1, START):
            self._seek(number)
            image = self._advance(tick)
            if image is not None:
                return image
            if number < key and self._landing is not None and self._landing <= tick:
                break
        frame = f"frame {bisect.bisect_left(self._index.shown, tick)} of {len(self._index.shown)}"
        raise ValueError(
            f"{frame}, at {self._seconds(tick):.3f} s, does not decode: the container promises more than it "
            "holds; re-encode the video"
        )

    def _is_ahead(self, tick: int, key: int) -> bool:
        """True if decoding on is right: the frame comes later, and no key frame in between saves much."""
        if self._position is None or tick <= self._position:
            return False
        shown = self._index.shown
        skipped = bisect.bisect_left(shown, key) - bisect.bisect_right(shown, self._position)
        return skipped < WORTH_A_SEEK

    def _seek(self, number: int) -> None:
        """Go to a key frame by its number, or to the start, also where the container cannot seek."""
        if number >= 0:
            try:
                self._container.seek(self._index.keys[number], stream=self._stream)
            except av.FFmpegError:
                number = START
        if number < 0:
            self._container.close()
            self._open()
        self._restart_decoding()

    def _advance(self, tick: int) -> Image | None:
        """Decode up to the frame shown at `tick`; none where the decoder goes past it.

        Raises ValueError where frames of a suspect video are not decoded in the order of their times.
        """
        self._position, position = None, self._position  # unless a decoder's error ends this
        for frame in self._decoded:
            if frame.pts is None:
                continue
            before, position = position, frame.pts
            if self._index.is_suspect and before is not None and position < before:
                raise ValueError(self._times_of_decoding())
            self._landing = position if self._landing is None else self._landing
            self._damaged = frame.is_corrupt or (self._damaged and not frame.key_frame)
            if position >= tick:
                break
        self._position = position
        return self._upright(frame) if position == tick else None

    def _upright(self, frame: av.VideoFrame) -> Image:
        if self._damaged:
            raise ValueError(f"the data of the frame at {self._seconds(frame.pts or 0):.3f} s is damaged")
        size = (frame.width, frame.height)
        self._size = self._size or size
        if size != self._size:
            raise ValueError(f"frames change their size from {self._size} to {size} px: re-encode the video")
        image: Image = frame.to_ndarray(format="rgb24")
        return np.rot90(image, round(frame.rotation / QUARTER_TURN_DEG))

    def _times_of_decoding(self) -> str:
        """Message for frames that do not come in the order of their times.

        The remedy is times by the number of a frame. Re-encoding alone drops and doubles frames by the old
        times.
        """
        rate = measured_rate(self.times_s)
        fps = f"{rate.fps:g}" if rate else "FPS"
        return (
            "its frames carry the times of decoding, not those of showing (B-frames whose pts are their "
            f"dts): mend it by ffmpeg -i IN -vf setpts=N/{fps}/TB -r {fps} -c:v libx264 -crf 18 OUT.mp4"
        )

    def _seconds(self, tick: int) -> float:
        return float((tick - self._index.shown[0]) * self._clock)


def _read_index(container: av.container.InputContainer, stream: av.VideoStream) -> FrameIndex:
    """Read every packet; nothing is decoded."""
    shown: list[int] = []
    keys: list[int] = []
    num_packets, codec, is_rising, last = 0, stream.codec_context.name, True, None
    for packet in container.demux(stream):
        if not packet.size:
            continue  # the end; or AVI's way to say that the last frame stays
        num_packets += 1
        if packet.pts is None:
            raise ValueError("the container gives no time for some of its frames: remux the video")
        is_rising, last = is_rising and (last is None or packet.pts > last), packet.pts
        if packet.is_keyframe:
            keys.append(packet.pts)
        if keys and packet.pts >= keys[0] and not (packet.is_discard or _is_hidden(packet, codec)):
            shown.append(packet.pts)  # what comes before the first key frame can never be shown
    if num_packets < len(stream.index_entries):
        raise ValueError(f"the file is cut: it holds {num_packets} of {len(stream.index_entries)} frames")
    if not shown:
        raise ValueError("the file holds no frame that can be shown")
    if container.format.name == "avi" and stream.codec_context.has_b_frames:
        raise ValueError("AVI gives no times for reordered frames (B-frames): re-encode the video")
    return FrameIndex(sorted(shown), sorted(keys), is_rising and stream.codec_context.has_b_frames)


def _is_hidden(packet: av.Packet, codec: str) -> bool:
    return codec == "vp8" and not bytes(packet)[0] & VP8_SHOWN_BIT
