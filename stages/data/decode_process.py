"""Decoding in a process of its own, because a decoder may hang holding the interpreter's lock.

The parent asks over a pipe (JSON, then raw bytes; nothing is pickled) and kills the child when no
answer comes in time. The child aborting on a malformed file costs that file only. Raw bytes go straight into
the array that is returned: copies in between would hold the interpreter's lock, which the models want.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from thinkjepa.stages.errors import StageError

FrameStack = npt.NDArray[np.uint8]
"""Decoded frames `(frame, height, width, 3)`, RGB, 0-255."""

CHILD = "thinkjepa.stages.data.decode_child"

START_TIMEOUT_S = 120.0
"""For the child's own start (interpreter, numpy, libav): half a second on an idle machine."""

EXIT_TIMEOUT_S = 10.0
"""From the end of the pipe to the end of the process that closed it."""


class DecodeError(StageError):
    """A video cannot be opened or decoded, or its frame times are not real."""


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """A video as decoded: presentation time of every frame `(frame,)` in seconds, and its size."""

    times_s: npt.NDArray[np.float64]
    width_px: int
    height_px: int


class VideoDecoder:
    """Reads exact frames of one video after another through a child process; a context manager.

    The child has a thread for every core. `niceness` (0-19) is by how much it stands back behind others.
    Every method raises DecodeError with the reason; after a time-out or a crash the next `open` starts a
    new child.
    """

    def __init__(self, *, timeout_s: float, niceness: int = 0) -> None:
        self.timeout_s = timeout_s
        self.niceness = niceness
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._path: Path | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the child, where there is one."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the child, where there is none: half a second that a later call need not wait for."""
        if self._process is None:
            self._start()

    def open(self, path: Path) -> VideoInfo:
        """Open a video and read the times of all its frames."""
        self.start()
        self._path = None  # the child lets go of the last video even if this one does not open
        # Absolute, or a file named `http:...` or `concat:...` would be taken for a URL.
        header, raw = self._ask({"open": os.fspath(path.absolute())})
        times_s = raw.view(np.float64)
        self._path = path
        check_times(times_s)
        return VideoInfo(times_s, width_px=header["width"], height_px=header["height"])

    def frames(self, path: Path, indices: Sequence[int]) -> FrameStack:
        """Frames `(len(indices), height, width, 3)` by index; `path` is opened if it is not at hand."""
        if self._path != path or self._process is None:
            self.open(path)
        header, raw = self._ask({"frames": [int(index) for index in indices]})
        return raw.reshape(header["shape"])

    def interrupt(self) -> None:
        """From another thread: end whatever is being decoded, with a DecodeError."""
        process = self._process
        if process:
            process.kill()

    def __enter__(self) -> VideoDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", CHILD, str(theirs.fileno()), str(self.niceness)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for us: a decoder that ends looks like a broken video
            )
        self._pipe = Connection(ours.detach())
        self._answer(START_TIMEOUT_S)

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
        assert self._pipe is not None
        try:
            self._pipe.send_bytes(json.dumps(request).encode())
        except OSError as error:
            raise self._crashed() from error
        header = self._answer(self.timeout_s)
        if "error" in header:
            raise DecodeError(header["error"])
        return header, self._receive_raw(header["bytes"])

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._pipe is not None
        if not self._pipe.poll(timeout_s):
            self._stop()
            raise DecodeError(f"no answer from the decoder for {timeout_s:g} s, ended it (--decode-timeout)")
        answer: dict[str, Any] = json.loads(self._receive())
        return answer

    def _receive(self) -> bytes:
        assert self._pipe is not None
        try:
            return self._pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._crashed() from error

    def _receive_raw(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        assert self._pipe is not None
        raw = np.empty(num_bytes, dtype=np.uint8)
        left = raw.data
        while left:
            try:
                received = os.readv(self._pipe.fileno(), [left])
            except OSError as error:
                raise self._crashed() from error
            if not received:
                raise self._crashed()
            left = left[received:]
        return raw

    def _crashed(self) -> DecodeError:
        process = self._process
        status = process.wait(timeout=EXIT_TIMEOUT_S) if process else None
        self._stop()
        how = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
        return DecodeError(f"the decoder process ended by itself ({how}): the file is malformed")

    def _stop(self) -> None:
        process, pipe = self._process, self._pipe
        self._process = self._pipe = self._path = None
        if process:
            process.kill()
            process.wait()
        if pipe:
            pipe.close()


def check_times(times_s: npt.NDArray[np.float64]) -> None:
    """Raise DecodeError where frame times are not real: they decide what is past and what is future."""
    if not np.isfinite(times_s).all():
        raise DecodeError("the container gives no time for some of its frames: remux the video")
    falling = np.flatnonzero(np.diff(times_s) <= 0)
    if len(falling):
        at = int(falling[0])
        raise DecodeError(
            f"frame times do not increase (frame {at} at {times_s[at]:.3f} s, frame {at + 1} at "
            f"{times_s[at + 1]:.3f} s): re-encode the video"
        )
