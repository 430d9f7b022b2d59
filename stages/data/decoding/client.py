"""Decoding of video frames by a child process, because a decoder may hang holding the interpreter's lock.

A child that aborts on a malformed file costs that file only. It runs within limits of memory and time, and
writes no file. Frames are in memory that both processes map: sent through the pipe, each frame was copied
twice and woke both processes dozens of times.

Imports nothing of the project that is slow to import, as the child imports this module too.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from thinkjepa.stages.child_process import ChildEndedError, ChildProcess, NoAnswerError
from thinkjepa.stages.confinement import default_memory_bytes
from thinkjepa.stages.errors import StageError


class SharedFrames:
    """Memory for frames of one shape at a time, mapped by two processes. It grows and never shrinks."""

    def __init__(self, file: int) -> None:
        self.file = file
        """Descriptor of the file, for the other process."""
        self._bytes = np.empty(0, dtype=np.uint8)

    @classmethod
    def create(cls) -> SharedFrames:
        """A file without a name: in memory where the system has such files, else in the temporary folder."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("thinkjepa-frames"))
        file, path = tempfile.mkstemp(prefix="thinkjepa-frames-")
        Path(path).unlink()
        return cls(file)

    def room(self, count: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Room `(count, *shape)` for frames, uint8. Both processes ask for the same room, and share it.

        Raises OSError where there is no memory.
        """
        needed = count * prod(shape)
        if needed > len(self._bytes):
            os.truncate(self.file, max(needed, os.fstat(self.file).st_size))
            self._bytes = np.frombuffer(mmap.mmap(self.file, needed), dtype=np.uint8)
        return self._bytes[:needed].reshape(count, *shape)

    def close(self) -> None:
        """Close the file. Room that is still referred to stays valid."""
        if self.file >= 0:
            os.close(self.file)
        self.file, self._bytes = -1, np.empty(0, dtype=np.uint8)


FrameStack = npt.NDArray[np.uint8]
"""Decoded frames `(frame, height, width, 3)`, RGB, 0-255."""

CHILD = "thinkjepa.stages.data.decoding.child"


class DecodeError(StageError):
    """A video cannot be opened or decoded, or its frame times are not real."""


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """A video as decoded: presentation time of every frame `(frame,)` in seconds, and its size."""

    times_s: npt.NDArray[np.float64]
    width_px: int
    height_px: int

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""
        return self.width_px, self.height_px


class VideoDecoder:
    """Reads exact frames of one video after another through a child process; a context manager.

    The child decodes with `threads`, 0 for one on every core, and is as nice as the thread that starts it.
    Every method raises DecodeError with the reason, and StageError where there is no memory for frames; after
    a time-out or a crash the next `open` starts a new child.
    """

    def __init__(self, *, timeout_s: float, threads: int = 0) -> None:
        self.timeout_s = timeout_s
        self.threads = threads
        self._child: ChildProcess | None = None
        self._frames = SharedFrames.create()
        self._path: Path | None = None
        self._shape = (0, 0, 3)
        self._unread = 0
        """Frames that were asked for and are still to come."""

    @property
    def pid(self) -> int | None:
        """Process id of the child, where there is one."""
        return self._child.pid if self._child else None

    def open(self, path: Path) -> VideoInfo:
        """Open a video and read the times of all its frames."""
        if self._unread:  # who asked for them wants no more
            self._stop()
        if self._child is None:
            self._start()
        self._path = None  # the child lets go of the last video even if this one does not open
        # Absolute, or a file named `http:...` or `concat:...` would be taken for a URL.
        self._send({"open": os.fspath(path.absolute())})
        header = self._header()
        times_s = np.frombuffer(self._receive(), dtype=np.float64)
        self._path, self._shape = path, (header["height"], header["width"], 3)
        check_times(times_s)
        return VideoInfo(times_s, width_px=header["width"], height_px=header["height"])

    def frames(self, path: Path, indices: Sequence[int]) -> FrameStack:
        """Frames `(len(indices), height, width, 3)` by index; `path` is opened unless it is open."""
        rising = sorted(set(indices))
        stacks = self.stream(path, rising, at_once=1)
        frames = {index: stack[0].copy() for index, stack in zip(rising, stacks, strict=True)}
        return np.stack([frames[index] for index in indices])

    def stream(self, path: Path, indices: Sequence[int], *, at_once: int) -> Iterator[FrameStack]:
        """Frames by rising index, `at_once` at a time and the rest at the end.

        A stack lasts until the next one is asked for: its memory is used again. Meanwhile the child is at
        the next frames, one stack ahead. A caller that wants no more leaves the iteration; the next request
        starts a new child then.
        """
        if self._path != path or self._child is None or self._unread:
            self.open(path)
        at_once = max(1, min(at_once, len(indices)))
        room = self._room(min(2 * at_once, len(indices)))
        self._send({"frames": [int(index) for index in indices], "at_once": at_once, "room": len(room)})
        self._unread = len(indices)
        for start in range(0, len(indices), at_once):
            first, count = start % len(room), min(at_once, self._unread)
            for _ in range(count):
                self._header()
                self._unread -= 1
            yield room[first : first + count]
            if self._unread > at_once:
                self._send({"free": at_once})

    def _room(self, count: int) -> FrameStack:
        needed, most = count * prod(self._shape), default_memory_bytes()
        if needed > most:
            raise DecodeError(
                f"{count} frames of {self._shape[1]}x{self._shape[0]} px take {needed / 1e9:.1f} GB, and a "
                f"decoder may take {most / 1e9:.1f} GB: scale the video down"
            )
        try:
            return self._frames.room(count, self._shape)
        except OSError as error:
            raise StageError(
                f"no memory for {count} frames of {self._shape[1]}x{self._shape[0]} px, which the decoder "
                f"shares with us: {error.strerror} (a limit of this machine, see ulimit -a)"
            ) from error

    def interrupt(self) -> None:
        """From another thread: end whatever is being decoded, with a DecodeError."""
        child = self._child
        if child:
            child.kill()

    def __enter__(self) -> VideoDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._frames.close()

    def _start(self) -> None:
        self._child = ChildProcess(
            CHILD,
            str(self.threads),
            str(self.timeout_s),
            name="the decoder process",
            handles=(self._frames.file,),
        )
        try:
            with self._explained() as child:
                child.wait_until_ready()
        except BaseException:
            self._stop()
            raise

    def _send(self, request: dict[str, Any]) -> None:
        with self._explained() as child:
            child.send(request)

    def _header(self) -> dict[str, Any]:
        """The next header; an error is the last one of a request."""
        with self._explained() as child:
            header = child.answer(self.timeout_s)
        if "error" in header:
            self._unread = 0
            raise DecodeError(header["error"])
        return header

    def _receive(self) -> bytes:
        with self._explained() as child:
            return child.receive(self.timeout_s)

    @contextmanager
    def _explained(self) -> Iterator[ChildProcess]:
        """The child. Its end is a DecodeError."""
        assert self._child is not None
        try:
            yield self._child
        except NoAnswerError as error:
            self._stop()
            raise DecodeError(
                f"no answer from the decoder for {self.timeout_s:g} s, ended it (--decode-timeout)"
            ) from error
        except ChildEndedError as error:
            self._stop()
            remedy = " (--decode-timeout)" if error.was_slow else ""
            raise DecodeError(f"the decoder process {error}{remedy}") from error

    def _stop(self) -> None:
        child, self._child, self._path, self._unread = self._child, None, None, 0
        if child:
            child.stop()


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
