"""Videos of a folder, identified by their content, and a memory of the digests of files.

The memory works as git's index: a file whose size, change times and inode are those of the last reading is
taken to hold the same bytes. A file that was changed shortly before it was read is not remembered, because a
later write may fall into the same tick of the clock. A write that leaves size, times and inode as they were,
for instance under a clock that was turned back, is not noticed, unless a memory's `state` has more.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from thinkjepa.cache import VIDEO_ID_HEX, file_digest
from thinkjepa.cache.disk.files import replace_file
from thinkjepa.stages.errors import StageError

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")

FileSignature = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class SourceVideo:
    """A video file. `name` is its path under the videos folder, with forward slashes."""

    path: Path
    name: str
    digest: str
    signature: FileSignature
    """The file's size, modification time (ns) and inode when it was read."""

    @property
    def video_id(self) -> str:
        """The first 16 hex digits of the content's sha256: unique among 10^6 videos but for 3 in 10^8."""
        return self.digest[:VIDEO_ID_HEX]


def find_videos(folder: Path) -> list[Path]:
    """Every video file under `folder`, recursively, sorted by its relative path.

    Links that lead out of the folder are not followed. Raises StageError where the folder (or one below it)
    cannot be read or holds no video.
    """
    try:
        kind = folder.stat().st_mode
    except OSError as error:
        raise StageError(
            f"videos folder {str(folder)!r} cannot be read: {error.strerror}; name the folder of your videos "
            "with --videos, or in a project with the key videos of params.yaml"
        ) from error
    if not stat.S_ISDIR(kind):
        raise StageError(f"--videos {str(folder)!r} is a file: give the folder that holds it")
    root = folder.resolve()
    named = [path for path in _files(folder) if path.suffix.lower() in SUFFIXES]
    found = [path for path in named if is_inside(path, root)]
    if not found:
        links = f" ({len(named)} links that lead out of it are not followed)" if named else ""
        raise StageError(
            f"no videos under {str(folder)!r}{links}: looked for {', '.join(SUFFIXES)}, recursively"
        )
    return sorted(found, key=lambda path: display_name(path, folder))


def identify(path: Path, *, folder: Path) -> SourceVideo:
    """Identify a file by reading all of it. Raises OSError, also for a pipe, which would block for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "neither a file nor a link to one")
    signature = file_signature(path)
    return SourceVideo(path, display_name(path, folder), digest=file_digest(path), signature=signature)


def file_signature(path: Path) -> FileSignature:
    """Size, modification time (ns) and inode, which tell a changed file. Raises OSError."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def display_name(path: Path, folder: Path) -> str:
    """The path under the folder; bytes of a name that are not UTF-8 are shown as escapes."""
    return path.relative_to(folder).as_posix().encode("utf-8", "backslashreplace").decode()


def _files(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise StageError(f"cannot read folder {str(error.filename)!r}: {error.strerror}") from error

    for parent, _, names in os.walk(folder, onerror=stop):
        yield from (Path(parent, name) for name in names)


def is_plain(path: Path) -> bool:
    """True for a file, and for a broken link, which is reported later. A pipe would block for ever."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def is_inside(path: Path, root: Path) -> bool:
    """True if a path lies in the folder. A link is judged by its target."""
    return not path.is_symlink() or path.resolve().is_relative_to(root)


CLOCK_GRAIN_NS = 2_000_000_000
"""The coarsest time stamps in use: FAT has them every two seconds."""

FileState = list[int | str]
"""Size, modification and change time (ns), inode; perhaps more. Another state is another content."""

Seen = list[int | str]
"""State and digest."""


def file_state(path: Path) -> FileState:
    """The state of a file without reading it. Raises OSError."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


class DigestMemory:
    """Digests of files, kept in a file that `save` rewrites. A damaged file counts as an empty memory.

    A digest is known while the `state` of its file stays.
    """

    def __init__(self, path: Path, *, state: Callable[[Path], FileState] = file_state) -> None:
        self._path = path
        self._state = state
        self._before = _read(path)
        self._now: dict[str, Seen] = {}

    def digest(self, path: Path, read: Callable[[Path], str]) -> str:
        """The digest of a file, from `read` where it is not remembered. Raises OSError."""
        key, state = str(path.absolute()), self._state(path)
        known = self._before.get(key)
        if known is not None and known[:-1] == state:
            self._now[key] = known
            return str(known[-1])
        started_ns = time.time_ns()
        digest = read(path)
        changed_ns = max(path.stat().st_mtime_ns, path.stat().st_ctime_ns)
        if changed_ns < started_ns - CLOCK_GRAIN_NS and self._state(path) == state:
            self._now[key] = [*state, digest]
        return digest

    def known(self, path: Path) -> str | None:
        """The digest of a file, None where the file is to be read, or is not there."""
        seen = self._before.get(str(path.absolute()))
        try:
            return str(seen[-1]) if seen and seen[:-1] == self._state(path) else None
        except OSError:
            return None

    @property
    def paths(self) -> list[Path]:
        """Files that were remembered, whether or not they have changed."""
        return [Path(name) for name in self._before]

    def save(self) -> None:
        """Write the digests that this run asked for. Raises CacheError where that fails."""
        if self._now != self._before:
            replace_file(self._path, json.dumps(self._now, separators=(",", ":")).encode())


def _read(path: Path) -> dict[str, Seen]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    whole = isinstance(found, dict) and all(isinstance(seen, list) for seen in found.values())
    return found if whole else {}
