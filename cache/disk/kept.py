"""Small files that stay readable as they were when they were opened, also when they are replaced."""

from __future__ import annotations

import io
import os
import weakref
from pathlib import Path
from typing import BinaryIO

from thinkjepa.cache.disk.files import explained_os_errors

HELD_BYTES = 1 << 16
"""Files up to this size are held in memory. Of larger ones, which are few, the descriptor is: a cache of a
million clips has fewer than 200 index files for a set."""


class KeptFile:
    """The content of a file at the moment of its opening. Files of a cache are replaced, never changed."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError where there is none, and CacheError where it cannot be read."""
        self.path = path
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError:
            with explained_os_errors("read", path):
                raise
        self._size = os.fstat(descriptor).st_size
        self._content: bytes | None = None
        self._descriptor = descriptor
        close = weakref.finalize(self, os.close, descriptor)
        if self._size <= HELD_BYTES:
            with explained_os_errors("read", path):
                self._content = os.pread(descriptor, self._size, 0)
            close()

    def open(self) -> BinaryIO:
        """The content from its beginning. Threads may each have their own."""
        if self._content is not None:
            return io.BytesIO(self._content)
        return io.BufferedReader(_At(self, self._descriptor, self._size))


def keep_file(path: Path) -> KeptFile | None:
    """A file as it is now, None where there is none."""
    try:
        return KeptFile(path)
    except FileNotFoundError:
        return None


class _At(io.RawIOBase):
    """Reads a descriptor that others read too, at positions of its own."""

    def __init__(self, owner: KeptFile, descriptor: int, size: int) -> None:
        self._owner = owner  # as long as this is read, the descriptor is open
        self._descriptor, self._size, self._position = descriptor, size, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer with the next bytes, as far as there are."""
        content = os.pread(self._descriptor, len(buffer), self._position)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
