"""A power cut at any step of a command: what was not synced is forgotten.

A file keeps the content of its last sync, a folder the names of its last sync. A file whose name was synced
and whose content was not is empty, as on ext4. With `names` every change of names has reached the disk, and
contents have not.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import kill_points
from .kill_points import Work


class Disk:
    """Content of a folder that is on the disk, followed from its present state on."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._open: dict[int, int] = {}  # keeps the number of a removed file from being used again
        for folder, _, files in os.walk(root):
            self._keep_folder(Path(folder))
            for name in files:
                path = Path(folder, name)
                self._contents[path.stat().st_ino] = path.read_bytes()

    def sync(self, descriptor: int, call: Callable[[int], None]) -> None:
        """Sync a file or a folder. What another thread writes meanwhile is not on the disk."""
        status, path = os.fstat(descriptor), Path(f"/proc/self/fd/{descriptor}")
        if stat.S_ISDIR(status.st_mode):
            call(descriptor)
            self._keep_folder(path)
        else:
            content = path.read_bytes()
            call(descriptor)
            self._hold(path, status.st_ino)
            self._contents[status.st_ino] = content

    def restore(self, image: Path, *, names: bool) -> None:
        """Write what a power cut would leave now."""
        if self.root.exists():
            self._restore(self.root.stat().st_ino, image, self.root if names else None)

    def _restore(self, folder: int, target: Path, now: Path | None) -> None:
        target.mkdir()
        for name, number in (_names(now) if now else self._names.get(folder, {})).items():
            held = Path(f"/proc/self/fd/{self._open[number]}") if number in self._open else None
            current = now / name if now else None
            known = current or held
            if known is not None and known.is_dir():
                self._restore(number, target / name, current)
            else:
                (target / name).write_bytes(self._contents.get(number, b""))

    def _keep_folder(self, path: Path) -> None:
        self._hold(path, path.stat().st_ino)
        names = _names(path)
        for name, number in names.items():
            self._hold(path / name, number)
        self._names[path.stat().st_ino] = names

    def _hold(self, path: Path, number: int) -> None:
        if number not in self._open:
            self._open[number] = os.open(path, os.O_RDONLY)


def _names(folder: Path) -> dict[str, int]:
    with os.scandir(folder) as entries:
        return {entry.name: entry.inode() for entry in entries}


def cut_at(point: int, work: Work, root: Path, image: Path, *, names: bool) -> bool:
    """True if the power was cut at step `point`: then `image` has what is left. False: the command ended."""

    def prepared(kill: Callable[[], None]) -> Callable[[], None]:
        disk = Disk(root)
        os.fsync, os.fdatasync = partial(disk.sync, call=os.fsync), partial(disk.sync, call=os.fdatasync)

        def cut() -> None:
            disk.restore(image, names=names)
            kill()

        return cut

    return kill_points.killed_at(point, work, root, at_point=prepared) is None
