"""Frames to H.264 in mp4, the same bytes every time for one version of the encoder."""

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]

# One thread: their number changes what x264 writes. A constant quantiser: the rate control (macroblock tree)
# reads memory that it has not set in pictures below about 64 px, and one encoding in five came out different.
# No marks of time or version in the container.
ENCODER_OPTIONS = {"threads": "1", "flags": "+bitexact"}


def encode_video(
    path: Path, frames: Frames, *, fps: int, qp: int, preset: str = "veryfast", key_interval_s: float = 1.0
) -> None:
    """Write frames `(frame, height, width, 3)`, making the folder; `qp` 0 (lossless) to 51 (worst)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {**ENCODER_OPTIONS, "qp": str(qp), "preset": preset}
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = round(key_interval_s * fps)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
