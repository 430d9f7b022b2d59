"""Videos whose frames carry their own number."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import numpy as np
import numpy.typing as npt
import pytest

# A frame's number as 16 bits in 4 x 4 blocks, most significant first: blocks this big survive any codec.
BITS_PER_SIDE = 4
NUM_BITS = BITS_PER_SIDE**2
BLACK, WHITE = 16, 235

# What `timestamps` are rounded to (s): the usual clock of video containers.
CLOCK = Fraction(1, 90_000)

# x264's rate control does not always write the same bytes for small pictures; a constant quantiser does.
CODEC_OPTIONS = {"libx264": {"qp": "20", "threads": "1"}}

Frame = npt.NDArray[np.uint8]


class MakeVideo(Protocol):
    """See `make_video`."""

    def __call__(
        self,
        path: Path,
        num_frames: int = 60,
        fps: Fraction | int = 30,
        size: tuple[int, int] = (160, 128),
        timestamps: Sequence[float] | None = None,
        codec: str = "libx264",
    ) -> Path: ...


class ReadFrameNumber(Protocol):
    """See `read_frame_number`."""

    def __call__(self, frame: Frame) -> int: ...


@pytest.fixture(scope="session")
def make_video() -> MakeVideo:
    """A function that writes a video of numbered frames and returns its path.

    `size` is (width, height) in px, `timestamps` the frames' presentation times (s) where the rate is not
    constant; the path's suffix chooses the container. The same arguments give the same bytes
    where the codec is libx264.
    """
    return _write_numbered_video


@pytest.fixture(scope="session")
def read_frame_number() -> ReadFrameNumber:
    """A function from a decoded frame, (height, width, 3), to the number that `make_video` wrote in it."""
    return _read_number


def _write_numbered_video(
    path: Path,
    num_frames: int = 60,
    fps: Fraction | int = 30,
    size: tuple[int, int] = (160, 128),
    timestamps: Sequence[float] | None = None,
    codec: str = "libx264",
) -> Path:
    clock = 1 / Fraction(fps) if timestamps is None else CLOCK
    ticks = range(num_frames) if timestamps is None else [round(time / CLOCK) for time in timestamps]
    if len(ticks) != num_frames:
        raise ValueError(f"{len(ticks)} timestamps for {num_frames} frames")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=fps, options=CODEC_OPTIONS.get(codec, {}))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = clock
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(_numbered_frame(number, *size), format="rgb24")
            frame.pts, frame.time_base = tick, clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _numbered_frame(number: int, width: int, height: int) -> Frame:
    """An (height, width, 3) frame of black and white blocks that spell `number`."""
    if not 0 <= number < 2**NUM_BITS:
        raise ValueError(f"frame number {number} needs more than {NUM_BITS} bits")
    bits = (number >> np.arange(NUM_BITS)[::-1]) & 1
    rows = np.arange(height) * BITS_PER_SIDE // height
    columns = np.arange(width) * BITS_PER_SIDE // width
    blocks = np.where(bits.reshape(BITS_PER_SIDE, BITS_PER_SIDE), WHITE, BLACK).astype(np.uint8)
    return np.repeat(blocks[np.ix_(rows, columns)][..., None], 3, axis=2)


def _read_number(frame: Frame) -> int:
    """Compare the middle of every block with grey."""
    centres = (2 * np.arange(BITS_PER_SIDE) + 1) / (2 * BITS_PER_SIDE)
    rows, columns = (np.rint(centres * length).astype(int) for length in frame.shape[:2])
    bits = np.asarray(frame)[np.ix_(rows, columns)].mean(axis=2).ravel() > (BLACK + WHITE) / 2
    return int(sum(1 << place for place, bit in enumerate(bits[::-1]) if bit))
