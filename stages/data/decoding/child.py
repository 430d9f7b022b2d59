"""The decoder's side of the pipe: libav, in a process that may hang, abort or be killed, within limits.

Imports the reader, and nothing of the project that is slow to import: it starts in half a second and stays
small.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Iterable
from multiprocessing.connection import Connection

from thinkjepa.stages.child_process import next_request, send
from thinkjepa.stages.confinement import allow_cpu, confine, default_memory_bytes
from thinkjepa.stages.data.decoding.client import SharedFrames
from thinkjepa.stages.data.decoding.exact_frames import ExactFrames, Image


def serve(pipe: Connection, shared: SharedFrames, *, threads: int, cpu_s: float) -> None:
    """Answer requests until the parent is gone: frames one by one, as there is room for them, or an error.


    Each answer takes `cpu_s` of processor time at most.
    """
    reader: ExactFrames | None = None
    pipe.send_bytes(b"{}")
    while (request := next_request(pipe)) is not None:
        try:
            allow_cpu(cpu_s)
            if "open" in request:
                reader = None
                gc.collect()  # a decoder is part of a cycle with its frames: 19 MB of 720p
                reader = ExactFrames(request["open"], threads=threads)
                height, width, _ = reader.first.shape
                send(pipe, {"width": width, "height": height})
                pipe.send_bytes(reader.times_s.tobytes())
            elif "frames" in request:
                assert reader is not None
                room = shared.room(request["room"], reader.first.shape)
                images = reader.images(request["frames"])
                _send_frames(images, room, request["at_once"], pipe, cpu_s=cpu_s)
        except Exception as error:  # whatever a decoder raises is this file's answer, not the child's end
            send(pipe, {"error": _reason(error)})


def _send_frames(
    images: Iterable[Image], room: Image, at_once: int, pipe: Connection, *, cpu_s: float
) -> None:
    """Fill the room `(frame, height, width, 3)` again and again, a stack of it while another one is read."""
    for number, image in enumerate(images):
        if number >= len(room) and number % at_once == 0:
            next_request(pipe)  # the oldest stack is free
        room[number % len(room)] = image
        send(pipe, {})
        allow_cpu(cpu_s)


def _reason(error: Exception) -> str:
    """A decoder's error in one line, without libav's number and the name of its function."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return f"cannot be decoded in {default_memory_bytes() / 1e9:.1f} GB, the most that a decoder may take"
    text = getattr(error, "strerror", None) or str(error)
    first = text.strip().splitlines()[:1] or [type(error).__name__]
    return f"cannot be decoded: {first[0].strip()[:300]}"


if __name__ == "__main__":
    confine()
    ours, frames, threads = map(int, sys.argv[1:4])
    cores = threads or os.cpu_count() or 1
    serve(Connection(ours), SharedFrames(frames), threads=threads, cpu_s=cores * float(sys.argv[4]))
