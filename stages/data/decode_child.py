"""The decoder's side of the pipe: decord, in a process that may hang, abort or be killed.

Imports nothing of the project, so that it starts in half a second and stays small.
"""

from __future__ import annotations

import ctypes
import json
import re
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from decord import VideoReader, cpu, logging

PR_SET_PDEATHSIG = 1

CHANNELS = 3
"""decord2 3.4 takes the padded rows of some widths (16, 24, 32, 48, 96, 144 px) for more channels."""


def serve(pipe: Connection) -> None:
    """Answer requests until the parent is gone."""
    reader: Any = None
    pipe.send_bytes(b"{}")
    while (request := _next_request(pipe)) is not None:
        raw: bytes | memoryview | None = None
        try:
            if "open" in request:
                reader = None
                reader = VideoReader(request["open"], ctx=cpu(0))
                header, raw = _describe(reader)
            else:
                header, raw = _frames(reader, request["frames"])
        except Exception as error:  # whatever a decoder raises is this file's answer, not the child's end
            header = {"error": _reason(error)}
        pipe.send_bytes(json.dumps(header).encode())
        if raw is not None:
            pipe.send_bytes(raw)


def _next_request(pipe: Connection) -> dict[str, Any] | None:
    try:
        request: dict[str, Any] = json.loads(pipe.recv_bytes())
    except (EOFError, OSError):
        return None
    return request


def _describe(reader: Any) -> tuple[dict[str, Any], bytes]:
    """Size, and the start time of every frame in seconds as float64 bytes."""
    times_s = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)
    height, width, channels = reader[0].shape
    if channels != CHANNELS:
        raise ValueError(f"the decoder cannot read frames {width} px wide: scale the video, e.g. to 160 px")
    _stop_running_ahead(reader)
    return {"width": int(width), "height": int(height)}, times_s.tobytes()


def _frames(reader: Any, indices: Sequence[int]) -> tuple[dict[str, Any], memoryview]:
    """Frames by index, raw; decord seeks exactly in `get_batch`."""
    batch = np.ascontiguousarray(reader.get_batch(indices).asnumpy())
    _stop_running_ahead(reader)
    return {"shape": batch.shape}, batch.reshape(-1).data


def _stop_running_ahead(reader: Any) -> None:
    """decord goes on decoding into a queue without bound while nobody asks: 3 minutes of 640x480 grew to
    4 GB, with the seek to 0.9 GB at the same speed (github.com/dmlc/decord/issues/157 and 208)."""
    reader.seek(0)


def _reason(error: Exception) -> str:
    """A decoder's error in one line, without its clock, source paths and C++ stack."""
    first = str(error).strip().splitlines()[:1] or [type(error).__name__]
    text = re.sub(r"\[\d\d:\d\d:\d\d\] \S+?:\d+: ?", "", first[0])
    return f"cannot be decoded: {text.strip()[:300] or type(error).__name__}"


def die_with_parent() -> None:
    """On Linux a child that hangs in a decoder does not outlive a parent that was killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent()
    logging.set_level(logging.FATAL)
    serve(Connection(int(sys.argv[1])))
