"""Readers of hand labels, and where a video has its labels. A new format is a line in READERS.

Where a video's hand labels are, and who reads them. A new format is a line in READERS.

The rule: a file next to the video with its name (READERS), or its rows in a table `joints.parquet` or
`joints.csv` of its folder or of one above, up to the videos folder. Labels in two places are an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from thinkjepa.cache import file_digest
from thinkjepa.stages.data.labels import egodex, joint_table
from thinkjepa.stages.data.labels.label_file import LabelError, LabelFile
from thinkjepa.stages.data.videos import FileSignature, file_signature, is_inside, is_plain

READERS: Mapping[str, Callable[[Path], LabelFile]] = {
    ".hdf5": egodex.read,
    ".h5": egodex.read,
    ".csv": joint_table.read,
    ".parquet": joint_table.read,
    ".joints.csv": joint_table.read,
    ".joints.parquet": joint_table.read,
}
"""By what follows the video's stem: `pour/0.mp4` has its labels in `pour/0.hdf5` or `pour/0.joints.csv`."""

FOLDER_TABLES = ("joints.parquet", "joints.csv")
"""Tables of all videos in their folder and below it, with a column `video`."""

NAMES_HELP = ", ".join([*(f"<video>{suffix}" for suffix in READERS), *FOLDER_TABLES])


@dataclass(frozen=True, slots=True)
class LabelSource:
    """Where a video's labels are: a file of its own, or its rows in a table of a folder."""

    path: Path
    rows_of: str | None = None
    """The video's path under the table's folder; None for a file of its own."""

    def read(self) -> LabelFile:
        """Raises LabelError, which names the file."""
        if self.rows_of is None:
            return read_labels(self.path)
        with named_errors(self.path):
            return joint_table.label_file(_rows_by_video(self.path)[self.rows_of])

    def digest(self) -> str:
        """Changes with the file's content. Raises LabelError where it cannot be read."""
        with named_errors(self.path):
            return _file_digest(self.path, file_signature(self.path))


def label_files(video: Path, root: Path) -> list[Path]:
    """Every path at which labels of a video are looked for and something is, whatever it is.

    `root` is the videos folder.
    """
    folders = [video.parent, *video.parent.parents]
    above = folders[: folders.index(root) + 1] if root in folders else folders[:1]
    tables = [folder / name for folder in above for name in FOLDER_TABLES]
    return [path for path in dict.fromkeys([*_own_files(video), *tables]) if os.path.lexists(path)]


def _own_files(video: Path) -> list[Path]:
    return [video.with_name(f"{video.stem}{suffix}") for suffix in READERS]


def find_labels(video: Path, root: Path) -> LabelSource | None:
    """The labels of a video, None where there are none. `root` is the videos folder.

    Raises LabelError where there are several, or where they are not in a plain file inside the folder.
    """
    sources = [_source(path, video, root) for path in label_files(video, root)]
    found = [source for source in sources if source is not None]
    if len(found) > 1:
        names = ", ".join(repr(source.path.name) for source in found)
        raise LabelError(f"the video has several label files ({names}): keep one")
    return found[0] if found else None


def _source(path: Path, video: Path, root: Path) -> LabelSource | None:
    """The labels of a video in a file; None for a folder's table without rows of it."""
    if not is_readable_place(path, root.resolve()):
        raise LabelError(f"{path.name!r} is not a plain file in the folder: links out of it are not followed")
    if path in _own_files(video):
        return LabelSource(path)
    name = video.relative_to(path.parent).as_posix()
    with named_errors(path):
        return LabelSource(path, rows_of=name) if name in _rows_by_video(path) else None


def is_readable_place(path: Path, root: Path) -> bool:
    """Whether opening a path neither blocks nor leaves the folder, which is resolved."""
    return is_inside(path, root) and path.exists() and is_plain(path)


def read_labels(path: Path) -> LabelFile:
    """Read a label file of one video. Raises LabelError, which names it."""
    with named_errors(path):
        return READERS[path.suffix](path)


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turn what a reader raises into a LabelError that names the file."""
    try:
        yield
    except LabelError as error:
        raise LabelError(f"{path.name!r}: {error}") from error
    except OSError as error:
        raise LabelError(f"{path.name!r} cannot be read: {error.strerror or error}") from error


def _rows_by_video(path: Path) -> dict[str, pa.Table]:
    return _read_folder_table(path, file_signature(path))


@lru_cache(maxsize=2)
def _read_folder_table(path: Path, signature: FileSignature) -> dict[str, pa.Table]:
    """Read once for all videos of the folder, again where the file has changed."""
    return joint_table.read_by_video(path)


@lru_cache(maxsize=2)
def _file_digest(path: Path, signature: FileSignature) -> str:
    return file_digest(path)
