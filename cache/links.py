"""A cache that comes from somebody else: no name and no link in it leads to a file outside its folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from thinkjepa.cache.disk import explained_os_errors
from thinkjepa.cache.errors import CacheError

SET_NAME = re.compile(r"(thinker|encoder)-[0-9a-f]{12}")
ARRAY_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

DEEPEST = 3
"""Folders from a cache to `features.zarr/<set>/<array>`; links to shards are looked at when opened."""


def refuse_links_out(root: Path) -> None:
    """Raise CacheError where a folder or small file of a cache is a link that leads out of it."""
    with explained_os_errors("read", root):
        for link in _links(root, DEEPEST):
            require_inside(root, link)


def require_inside(root: Path, path: Path) -> None:
    """Raise CacheError where a path of a cache leads, by a link in any of its parts, out of the cache."""
    real = os.path.realpath(path)
    if not Path(real).is_relative_to(os.path.realpath(root)):
        raise CacheError(
            f"{str(path)!r} is a link that leads out of the cache, to {real!r}: "
            "put what it leads to in its place"
        )


def _links(folder: Path, depth: int) -> Iterator[Path]:
    with os.scandir(folder) as scanned:
        entries = list(scanned)
    for entry in entries:
        if entry.is_symlink():
            yield Path(entry.path)
        elif depth and entry.is_dir():
            yield from _links(Path(entry.path), depth - 1)
