"""Label files of a folder's videos: one search finds them, their names tell the format.

The labels of a video are in a file next to it with its name, or in a file for many videos in its folder or in
one above, up to the videos folder. Labels in two files are an error. A format is a module of `labels/formats`
that offers a `READER`. Nothing else names it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from thinkjepa.cache import VideoLabels, file_digest
from thinkjepa.stages.data.labels.client import label_process
from thinkjepa.stages.data.labels.contract import LabelError, check_num_frames, check_size
from thinkjepa.stages.data.labels.formats import FOLDER_FILES, NAMES_HELP, OWN_FILES
from thinkjepa.stages.data.videos import FileSignature, SourceVideo, file_signature, is_inside, is_plain
from thinkjepa.stages.errors import StageError


@dataclass(frozen=True, slots=True)
class LabelSource:
    """The labels of a video: a file of its own, or a part of a folder's file.

    Every method raises LabelError, which names the file, where it is broken or cannot be read.
    """

    path: Path
    rows_of: str | None = None
    """The video's path under the folder of the file; None for a file of its own."""

    def read(self) -> VideoLabels:
        """The checked labels, without the video's name and digests."""
        with _named_errors(self.path):
            check_size(self.path)
            return label_process().read(self.path, rows_of=self.rows_of)

    def read_for(self, num_frames: int) -> VideoLabels:
        """The labels of a video with so many frames. Labels of far more frames are refused."""
        labels = self.read()
        with _named_errors(self.path):
            check_num_frames(labels.num_frames, num_frames)
        return labels

    def labels_of(self, video: SourceVideo, num_frames: int) -> VideoLabels:
        """The labels of a video with so many frames, as the cache stores them."""
        digest = self.digest()
        labels = self.read_for(num_frames)
        if self.digest() != digest:
            raise LabelError(f"{self.path.name!r} has changed while it was read: run the same command again")
        return replace(labels, video=video.name, video_digest=video.digest, label_digest=digest)

    def digest(self) -> str:
        """The sha256 of the file's content."""
        with _named_errors(self.path):
            check_size(self.path)
            return _file_digest(self.path, file_signature(self.path))


class LabelFolder:
    """The label files of videos under `root`, the videos folder. The file system is searched once."""

    def __init__(self, root: Path, videos: Iterable[Path]) -> None:
        self._root, self._resolved = root, root.resolve()
        self.paths = {video: self._existing(video) for video in videos}
        """Every label file that exists for a video, whatever it is and holds."""

    @property
    def has_any(self) -> bool:
        """True if any of the videos may have a label file."""
        return any(self.paths.values())

    def require_any(self) -> None:
        """Raise StageError where none of the videos has a label file."""
        if not self.has_any:
            raise StageError(
                f"no labels for any of the {len(self.paths)} videos under {str(self._root)!r}: looked for "
                f"{NAMES_HELP}"
            )

    def find(self, video: Path) -> LabelSource | None:
        """The labels of a video, None where there are none.

        Raises LabelError where there are several, or where they are not in a plain file inside the folder.
        """
        found = [source for path in self.paths[video] if (source := self._source(path, video))]
        if len(found) > 1:
            names = ", ".join(repr(source.path.name) for source in found)
            raise LabelError(f"the video has several label files ({names}): keep one")
        return found[0] if found else None

    def _existing(self, video: Path) -> list[Path]:
        folders = [video.parent, *video.parent.parents]
        above = folders[: folders.index(self._root) + 1] if self._root in folders else folders[:1]
        shared = [folder / name for folder in above for name in FOLDER_FILES]
        return [path for path in dict.fromkeys([*_own_files(video), *shared]) if os.path.lexists(path)]

    def _source(self, path: Path, video: Path) -> LabelSource | None:
        """The labels of a video in a file; None for a folder's file without the video."""
        if not is_readable_file(path, self._resolved):
            raise LabelError(
                f"{path.name!r} is not a plain file in the folder: links out of it are not followed"
            )
        if path in _own_files(video):
            return LabelSource(path)
        name = video.relative_to(path.parent).as_posix()
        with _named_errors(path):
            check_size(path)
            held = label_process().holds(path, name)
        return LabelSource(path, rows_of=name) if held else None


def find_labels(video: Path, root: Path) -> LabelSource | None:
    """The labels of one video, as `LabelFolder.find`."""
    return LabelFolder(root, [video]).find(video)


def is_readable_file(path: Path, root: Path) -> bool:
    """True if opening a path neither blocks nor leaves `root`, a resolved folder."""
    return is_inside(path, root) and path.exists() and is_plain(path)


def _own_files(video: Path) -> list[Path]:
    return [video.with_name(f"{video.stem}{suffix}") for suffix in OWN_FILES]


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turn what a reader raises into a LabelError that names the file."""
    try:
        yield
    except LabelError as error:
        raise LabelError(f"{path.name!r}: {error}") from error
    except OSError as error:
        raise LabelError(f"{path.name!r} cannot be read: {error.strerror or error}") from error


@lru_cache(maxsize=2)
def _file_digest(path: Path, signature: FileSignature) -> str:
    return file_digest(path)
