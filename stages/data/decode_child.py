"""The decoder's side of the pipe: libav, in a process that may hang, abort or be killed.

Imports nothing of the project but the reader, so that it starts in half a second and stays small.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from thinkjepa.stages.data.exact_frames import ExactFrames

PR_SET_PDEATHSIG = 1

NOTHING = memoryview(b"")


def serve(pipe: Connection) -> None:
    """Answer requests until the parent is gone: frames one by one, as long as it takes them, or an error."""
    reader: ExactFrames | None = None
    pipe.send_bytes(b"{}")
    while (request := _next_request(pipe)) is not None:
        try:
            if "open" in request:
                reader = None
                gc.collect()  # a decoder is part of a cycle with its frames: 19 MB of 720p
                reader = ExactFrames(request["open"])
                _send(pipe, *_describe(reader))
            else:
                assert reader is not None
                for image in reader.images(request["frames"]):
                    _send(pipe, {"shape": image.shape}, np.ascontiguousarray(image).reshape(-1).data)
        except Exception as error:  # whatever a decoder raises is this file's answer, not the child's end
            _send(pipe, {"error": _reason(error)})


def _send(pipe: Connection, header: dict[str, Any], raw: memoryview = NOTHING) -> None:
    pipe.send_bytes(json.dumps({**header, "bytes": len(raw)}).encode())
    while raw:
        raw = raw[os.write(pipe.fileno(), raw) :]


def _next_request(pipe: Connection) -> dict[str, Any] | None:
    try:
        request: dict[str, Any] = json.loads(pipe.recv_bytes())
    except (EOFError, OSError):
        return None
    return request


def _describe(reader: ExactFrames) -> tuple[dict[str, Any], memoryview]:
    """Size, and the time of every frame in seconds as float64 bytes."""
    height, width, _ = reader.first.shape
    return {"width": width, "height": height}, reader.times_s.view(np.uint8).data


def _reason(error: Exception) -> str:
    """A decoder's error in one line, without libav's number and the name of its function."""
    text = getattr(error, "strerror", None) or str(error)
    first = text.strip().splitlines()[:1] or [type(error).__name__]
    return f"cannot be decoded: {first[0].strip()[:300]}"


def die_with_parent() -> None:
    """On Linux a child that hangs in a decoder does not outlive a parent that was killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent()
    os.nice(int(sys.argv[2]))
    serve(Connection(int(sys.argv[1])))
