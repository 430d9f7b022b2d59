"""Hand labels of videos: the position of each joint at every frame.

`CACHE/labels/000000.arrow ...` are Arrow IPC files with a row per video. They are not compressed, so that a
clip's frames are read from the mapped file (829 hours of 68 joints are 73 GB). Of two rows of a video the
later one counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from thinkjepa.cache.disk.checksums import Ledger, is_as_listed, read_ledger, replace_listed
from thinkjepa.cache.disk.files import checksum, explained_os_errors
from thinkjepa.cache.disk.layout import labels_dir
from thinkjepa.cache.records import CacheError
from thinkjepa.cache.tables.parquet import next_number, numbered_files

ReferenceFrame = Literal["world", "camera"]
"""Reference frame of positions: a fixed one during the video, or that of a camera which does not move."""

Floats = npt.NDArray[np.float32]

Poses = npt.NDArray[np.float64]

FILE_BYTES = 64 * 2**20
"""Size of the labels in one file: bounds the memory that writing takes."""

SUFFIX = ".arrow"

TEXTS = ("video_digest", "video", "source", "label_digest", "reference_frame", "description")

NUMBERS = ("positions_m", "confidences", "camera_poses", "intrinsics")

LABELS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in TEXTS),
        ("joint_names", pa.list_(pa.string())),
        ("num_frames", pa.int64()),
        ("positions_m", pa.large_list(pa.float32())),
        ("confidences", pa.large_list(pa.float32())),
        ("camera_poses", pa.large_list(pa.float64())),
        ("intrinsics", pa.large_list(pa.float64())),
        ("checksum", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class VideoLabels:
    """Joints of one video, one sample a frame. Arrays may be read-only views into a mapped file."""

    source: str
    """Name of the reader, such as `egodex`."""
    reference_frame: ReferenceFrame
    joint_names: tuple[str, ...]
    positions_m: Floats
    """`(frame, joint, 3)`, meters, always finite: 0 where the confidence is 0 because nothing is known."""
    confidences: Floats
    """`(frame, joint)`, 0 to 1."""
    camera_poses: Poses | None = None
    """`(frame, 4, 4)`, camera to world: x right, y down, z forward; None where unknown or for `camera`."""
    intrinsics: Poses | None = None
    """`(3, 3)` in pixels of the video's frames."""
    description: str = ""
    video: str = ""
    """Name of the video. It and both digests are empty in labels that are not stored yet."""
    video_digest: str = ""
    label_digest: str = ""
    """sha256 of the label file: another file content is read again."""

    def __post_init__(self) -> None:
        frames, joints = self.num_frames, len(self.joint_names)
        expected = {"positions_m": (frames, joints, 3), "confidences": (frames, joints)}
        expected |= {"camera_poses": (frames, 4, 4), "intrinsics": (3, 3)}
        for name, shape in expected.items():
            values = getattr(self, name)
            if values is not None and values.shape != shape:
                raise ValueError(f"{self.video!r}: {name} is {values.shape}, expected {shape}")
        if self.reference_frame not in get_args(ReferenceFrame):
            raise ValueError(f"{self.video!r}: reference frame {self.reference_frame!r} is unknown")

    @property
    def num_frames(self) -> int:
        """Frames of the video, each with one sample."""
        return len(self.positions_m)

    @property
    def nbytes(self) -> int:
        """Bytes of all numbers."""
        return sum(values.nbytes for name in NUMBERS if (values := getattr(self, name)) is not None)


def write_labels(root: Path, labels: Iterable[VideoLabels]) -> int:
    """Append labels to a cache that this process has locked. Returns the number of videos written."""
    count, number = 0, next_number(labels_dir(root), SUFFIX)
    for group in _groups(labels):
        rows = (pa.RecordBatch.from_pylist([_row(item)], schema=LABELS_SCHEMA) for item in group)
        replace_listed(labels_dir(root) / f"{number:06d}{SUFFIX}", _file_bytes(rows))
        count, number = count + len(group), number + 1
    return count


def drop_labels(root: Path, video_digests: Collection[str]) -> None:
    """Remove the labels of videos from a cache that this process has locked."""
    gone, ledger = pa.array(sorted(video_digests), pa.string()), read_ledger(root)
    for path in _paths(labels_dir(root)):
        batches = list(_batches(path, ledger))
        kept = [
            item for item in batches if not pc.any(pc.is_in(item["video_digest"], value_set=gone)).as_py()
        ]
        if len(kept) < len(batches):
            replace_listed(path, _file_bytes(kept))


class LabelTable:
    """All labels of a cache, by video digest.

    All bytes of a file are compared with the ledger before Arrow opens it: Arrow crashes on some damage.
    Numbers are views into the mapped files, checked against their own crc32c on first touch.
    """

    def __init__(self, root: Path) -> None:
        self._folder = labels_dir(root)
        self._checked: set[str] = set()

    @cached_property
    def _rows(self) -> dict[str, tuple[pa.RecordBatch, int]]:
        """The newest row of each video: a batch, and a position in it."""
        rows: dict[str, tuple[pa.RecordBatch, int]] = {}
        ledger = read_ledger(self._folder.parent)
        for path in _paths(self._folder):
            for batch in _batches(path, ledger):
                digests = batch["video_digest"].to_pylist()
                rows |= {digest: (batch, row) for row, digest in enumerate(digests)}
        return rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[VideoLabels]:
        for digest in self._rows:
            labels = self.find(digest)
            assert labels is not None
            yield labels

    @property
    def video_digests(self) -> Sequence[str]:
        """The videos that have labels."""
        return list(self._rows)

    def label_digest(self, video_digest: str) -> str | None:
        """The digest of the file that a video's labels came from, None where there are none."""
        found = self._rows.get(video_digest)
        return None if found is None else str(found[0]["label_digest"][found[1]].as_py())

    def find(self, video_digest: str) -> VideoLabels | None:
        """The labels of a video, or None. Raises CacheError where they are damaged."""
        if video_digest not in self._rows:
            return None
        batch, row = self._rows[video_digest]
        try:
            return self._found(video_digest, batch, row)
        except (ValueError, TypeError) as error:  # a row that no version has written
            raise CacheError(
                f"{str(self._folder)!r}: the labels of video {video_digest[:16]!r} are damaged ({error}); "
                "remove the folder and run thinkjepa-data import again"
            ) from error

    def _found(self, video_digest: str, batch: pa.RecordBatch, row: int) -> VideoLabels:
        texts = {name: batch[name][row].as_py() for name in TEXTS}
        joints = tuple(batch["joint_names"][row].as_py())
        frames = batch["num_frames"][row].as_py()
        if frames < 0:
            raise ValueError(f"{frames} frames")
        flat = {name: _values(batch[name], row) for name in NUMBERS}
        if video_digest not in self._checked and batch["checksum"][row].as_py() != _checksum(flat):
            raise CacheError(
                f"{str(self._folder)!r}: the labels of video {texts['video']!r} are damaged (crc32c "
                "differs); remove the folder and run thinkjepa-data import again"
            )
        self._checked.add(video_digest)
        poses, intrinsics = flat["camera_poses"], flat["intrinsics"]
        return VideoLabels(
            **texts,
            joint_names=joints,
            positions_m=_known(flat["positions_m"]).reshape(frames, len(joints), 3),
            confidences=_known(flat["confidences"]).reshape(frames, len(joints)),
            camera_poses=None if poses is None else poses.reshape(frames, 4, 4),
            intrinsics=None if intrinsics is None else intrinsics.reshape(3, 3),
        )


def _groups(labels: Iterable[VideoLabels]) -> Iterator[list[VideoLabels]]:
    group: list[VideoLabels] = []
    held_bytes = 0
    for item in labels:
        group.append(item)
        held_bytes += item.nbytes
        if held_bytes >= FILE_BYTES:
            yield group
            group, held_bytes = [], 0
    if group:
        yield group


def _file_bytes(batches: Iterable[pa.RecordBatch]) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, LABELS_SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return memoryview(sink.getvalue())


def _row(item: VideoLabels) -> dict[str, Any]:
    flat = {name: _flat(getattr(item, name)) for name in NUMBERS}
    texts = {name: getattr(item, name) for name in TEXTS}
    counts = {"joint_names": item.joint_names, "num_frames": item.num_frames}
    return {**texts, **counts, **flat, "checksum": _checksum(flat)}


def _flat(values: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
    return None if values is None else np.ascontiguousarray(values).reshape(-1)


def _checksum(numbers: Mapping[str, npt.NDArray[Any] | None]) -> str:
    return checksum(values for values in numbers.values() if values is not None)


def _values(column: pa.Array, row: int) -> npt.NDArray[Any] | None:
    """The numbers of one row, without copying them."""
    scalar = column[row]
    values: npt.NDArray[Any] | None = scalar.values.to_numpy(zero_copy_only=True) if scalar.is_valid else None
    return values


def _known(values: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    if values is None:
        raise ValueError("positions or confidences are missing")
    return values


def _paths(folder: Path) -> list[Path]:
    return [item.path for item in numbered_files(folder, SUFFIX)]


def _batches(path: Path, ledger: Ledger) -> Iterator[pa.RecordBatch]:
    """The rows of one file. Its bytes are compared with the ledger before Arrow reads any of them."""
    try:
        with explained_os_errors("read", path):
            if not is_as_listed(path.parent.parent, path, ledger):
                raise CacheError(
                    f"{str(path)!r} is damaged or was changed from outside (crc32c differs): remove it and "
                    "run thinkjepa-data import again"
                )
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            if reader.schema != LABELS_SCHEMA:
                raise CacheError(f"{str(path)!r} has other columns than labels have: remove it, import again")
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                batch.validate(full=True)  # of a file that no ledger lists
                yield batch
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())[:200]
        raise CacheError(
            f"cannot read {str(path)!r}: {reason}; remove it and run thinkjepa-data import again"
        ) from error
