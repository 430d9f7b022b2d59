"""Label files of EgoDex (arXiv 2505.11709): `<i>.hdf5` next to `<i>.mp4`.

`transforms/<joint>` (frame, 4, 4) in the world of ARKit, whose origin differs per episode;
`transforms/camera` is the camera's pose in it; `camera/intrinsic` (3, 3), in one part of the data (0, 3);
`confidences/<joint>` (frame,), not in all files. A file is untrusted: no link out of it is followed,
nothing in it is evaluated, and its declared sizes are checked before they are allocated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from thinkjepa.cache import VideoLabels
from thinkjepa.stages.data.joints import EGODEX_JOINTS
from thinkjepa.stages.data.labels.contract import (
    MAX_EXPANSION,
    MAX_FILE_BYTES,
    MAX_JOINTS,
    MAX_TEXT,
    LabelError,
    LabelReader,
    Poses,
    check_extent,
)

CAMERA = "camera"
MAX_ENTRIES = MAX_JOINTS + 1
"""Of a group: the joints and the camera."""

READ_ERRORS = (RuntimeError, KeyError, ValueError, TypeError, OverflowError)
"""Errors of h5py on damaged files, next to OSError."""


def read(path: Path) -> VideoLabels:
    """Read a label file. Raises LabelError where it is broken, OSError where it cannot be opened."""
    with path.open("rb"):  # h5py's own message on a missing permission is no sentence
        pass
    if not h5py.is_hdf5(path):
        raise LabelError("is not an HDF5 file, or was cut short")
    try:
        with h5py.File(path, "r", locking=False) as file:
            return _read(_Contents(file, file_bytes=path.stat().st_size))
    except LabelError:
        raise
    except (OSError, *READ_ERRORS) as error:
        raise LabelError(f"HDF5 is damaged: {' '.join(str(error).split())[:160]}") from error


@dataclass(slots=True)
class _Contents:
    """Reads groups and numbers of a file, as far as its size makes them plausible."""

    file: Any
    file_bytes: int
    declared_bytes: int = 0

    def names(self, group: str) -> tuple[str, ...]:
        """Entries of a group, () where the file has no such group."""
        if group not in self.file:
            return ()
        found = self._follow(self.file, group)
        if not isinstance(found, h5py.Group) or len(found) > MAX_ENTRIES:
            raise LabelError(f"{group!r} is no group of at most {MAX_ENTRIES} entries")
        if wrong := [name for name in found if not isinstance(name, str) or not name.isprintable()]:
            raise LabelError(f"{group!r} has an entry {wrong[0]!r}, which is no name")
        return tuple(found)

    def found(self, group: str, name: str) -> Any:
        """A data set of numbers in this file, which nothing has read yet."""
        where = f"{group}/{name}"
        data = self._follow(self._follow(self.file, group), name, where)
        if not isinstance(data, h5py.Dataset) or data.shape is None or data.dtype.kind not in "fiu":
            raise LabelError(f"{where!r} is no array of numbers")
        if data.external or data.is_virtual:
            raise LabelError(f"{where!r} is in another file: not followed")
        chunk_bytes = math.prod(data.chunks or ()) * data.dtype.itemsize
        self._check_bytes(data, max(chunk_bytes, math.prod(data.shape) * data.dtype.itemsize))
        return data

    def numbers(self, data: Any) -> npt.NDArray[Any]:
        """All of one data set, in its own dtype."""
        self.declared_bytes += math.prod(data.shape) * data.dtype.itemsize
        self._check_bytes(data, self.declared_bytes)
        values: npt.NDArray[Any] = data[...]
        return values

    def _check_bytes(self, data: Any, declared_bytes: int) -> None:
        if declared_bytes > min(MAX_EXPANSION * self.file_bytes, MAX_FILE_BYTES):
            where = str(data.name).strip("/")
            raise LabelError(f"declares more than the file can hold: {where!r} with shape {data.shape}")

    def text(self, name: str) -> str:
        """One attribute of the file as text, empty where it is not there or no short text or number."""
        attributes = self.file.attrs
        if name not in attributes:
            return ""
        identity = attributes.get_id(name)
        if identity.shape not in ((), (1,)) or identity.get_storage_size() > MAX_TEXT:
            return ""
        value = np.ravel(attributes[name])[0]
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if not isinstance(value, str | int | float | np.number):
            return ""
        return str(value)[:MAX_TEXT].encode("utf-8", "replace").decode()

    @staticmethod
    def _follow(parent: Any, name: str, where: str = "") -> Any:
        if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
            raise LabelError(f"{where or name!r} is a link: not followed")
        return parent[name]


def _read(contents: _Contents) -> VideoLabels:
    names = contents.names("transforms")
    joints = _in_order([name for name in names if name != CAMERA])
    if not joints:
        raise LabelError("has no group 'transforms' with joints in it")
    num_frames = len(_found_transforms(contents, CAMERA if CAMERA in names else joints[0]))
    check_extent(num_frames, len(joints), file_bytes=contents.file_bytes)
    camera = _transforms(contents, CAMERA, num_frames).astype(np.float64) if CAMERA in names else None
    confident = frozenset(contents.names("confidences"))
    positions_m = np.empty((num_frames, len(joints), 3), dtype=np.float32)
    confidences = np.ones((num_frames, len(joints)), dtype=np.float32)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is refused by name
        for index, joint in enumerate(joints):
            positions_m[:, index] = _transforms(contents, joint, num_frames)[:, :3, 3]
            if joint in confident:
                confidences[:, index] = _confidences(contents, joint, num_frames)
    return VideoLabels(
        source="egodex",
        reference_frame="world",
        joint_names=joints,
        positions_m=positions_m,
        confidences=confidences,
        camera_poses=camera,
        intrinsics=_intrinsics(contents),
        description=_description(contents),
    )


def _in_order(names: list[str]) -> tuple[str, ...]:
    """EgoDex's own joints as the project orders them, then others by name."""
    known = {name: index for index, name in enumerate(EGODEX_JOINTS)}
    return tuple(sorted(names, key=lambda name: (known.get(name, len(known)), name)))


def _found_transforms(contents: _Contents, name: str) -> Any:
    data = contents.found("transforms", name)
    if data.ndim != 3 or data.shape[1:] != (4, 4):
        raise LabelError(f"'transforms/{name}' has shape {data.shape}, expected (frames, 4, 4)")
    return data


def _transforms(contents: _Contents, name: str, num_frames: int) -> npt.NDArray[Any]:
    data = _found_transforms(contents, name)
    _check_length(f"transforms/{name}", len(data), num_frames)
    return contents.numbers(data)


def _confidences(contents: _Contents, joint: str, num_frames: int) -> npt.NDArray[Any]:
    data = contents.found("confidences", joint)
    if data.ndim != 1:
        raise LabelError(f"'confidences/{joint}' has shape {data.shape}, expected (frames,)")
    _check_length(f"confidences/{joint}", len(data), num_frames)
    return contents.numbers(data)


def _check_length(where: str, found: int, expected: int) -> None:
    if found != expected:
        raise LabelError(f"{where!r} has {found} frames, the file's others have {expected}")


def _intrinsics(contents: _Contents) -> Poses | None:
    if "intrinsic" not in contents.names("camera"):
        return None
    data = contents.found("camera", "intrinsic")
    if not data.size:
        return None
    if data.shape != (3, 3):
        raise LabelError(f"'camera/intrinsic' has shape {data.shape}, expected (3, 3)")
    return contents.numbers(data).astype(np.float64)


def _description(contents: _Contents) -> str:
    """The task of the episode in words. A reversible task has two texts and says which of them holds."""
    reversible = contents.text("llm_type") == "reversible"
    second = reversible and contents.text("which_llm_description").strip() in ("2", "2.0")
    return contents.text("llm_description2" if second else "llm_description")


READER = LabelReader(suffixes=(".hdf5", ".h5"), read=read)
