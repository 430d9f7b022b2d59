"""Frames in memory that two processes see: a file without a name, mapped by both.

Imports nothing of the project, like the decoder's process, which lives with it.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt


class SharedFrames:
    """Room for some frames of one shape at a time. It grows with what is asked for, and never shrinks."""

    def __init__(self, file: int) -> None:
        self.file = file
        """Descriptor of the file, for the other process."""
        self._bytes = np.empty(0, dtype=np.uint8)

    @classmethod
    def create(cls) -> SharedFrames:
        """In memory where the system has such files, else in the folder of temporary ones."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("thinkjepa-frames"))
        file, path = tempfile.mkstemp(prefix="thinkjepa-frames-")
        Path(path).unlink()
        return cls(file)

    def room(self, count: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Room `(count, *shape)` for frames uint8; both sides ask for the same, and share it.

        Raises OSError where there is no memory.
        """
        needed = count * prod(shape)
        if needed > len(self._bytes):
            os.truncate(self.file, max(needed, os.fstat(self.file).st_size))
            self._bytes = np.frombuffer(mmap.mmap(self.file, needed), dtype=np.uint8)
        return self._bytes[:needed].reshape(count, *shape)

    def close(self) -> None:
        """Let go of the file; room that is still referred to stays."""
        if self.file >= 0:
            os.close(self.file)
        self.file, self._bytes = -1, np.empty(0, dtype=np.uint8)
