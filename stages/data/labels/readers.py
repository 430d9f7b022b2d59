"""Which file beside a video holds its hand labels, and who reads it. A new format is a line in READERS."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from thinkjepa.stages.data.labels import egodex, joint_table
from thinkjepa.stages.data.labels.label_file import LabelError, LabelFile
from thinkjepa.stages.data.videos import is_inside, is_plain

READERS: Mapping[str, Callable[[Path], LabelFile]] = {
    ".hdf5": egodex.read,
    ".h5": egodex.read,
    ".csv": joint_table.read,
    ".parquet": joint_table.read,
    ".joints.csv": joint_table.read,
    ".joints.parquet": joint_table.read,
}
"""By what follows the video's stem: `pour/0.mp4` has its labels in `pour/0.hdf5` or `pour/0.joints.csv`."""

SUFFIXES_HELP = ", ".join(f"<video>{suffix}" for suffix in READERS)


def label_files(video: Path) -> list[Path]:
    """Every name beside a video that a reader would take, whatever is behind it."""
    named = [video.with_name(f"{video.stem}{suffix}") for suffix in READERS]
    return [path for path in named if os.path.lexists(path)]


def find_label_file(video: Path, root: Path) -> Path | None:
    """The label file of a video, None where there is none. `root` is the videos folder, resolved.

    Raises LabelError where there are several, or it is not a plain file inside the folder.
    """
    found = label_files(video)
    if len(found) > 1:
        names = ", ".join(repr(path.name) for path in found)
        raise LabelError(f"the video has several label files ({names}): keep one")
    if found and not is_readable_place(found[0], root):
        raise LabelError(
            f"{found[0].name!r} is not a plain file in the folder: links out of it are not followed"
        )
    return found[0] if found else None


def is_readable_place(path: Path, root: Path) -> bool:
    """Whether opening a path neither blocks nor leaves the folder."""
    return is_inside(path, root) and path.exists() and is_plain(path)


def read_labels(path: Path) -> LabelFile:
    """Read a label file. Raises LabelError, which names it."""
    try:
        return READERS[path.suffix](path)
    except LabelError as error:
        raise LabelError(f"{path.name!r}: {error}") from error
    except OSError as error:
        raise LabelError(f"{path.name!r} cannot be read: {error.strerror or error}") from error
