"""Plain tables of joint positions, CSV or Parquet: a row for each joint of a frame.

A table is of one video, `<stem>.csv`, or of many, `joints.csv`: that has a column `video` with the path of
each row's video under the table's folder.

Needed columns: frame (from 0), joint, x, y, z (metres). Optional: confidence (0 to 1, else 1), and, the same
in every row, reference_frame (camera or world, else camera), fx fy cx cy (pixels), description. A joint
without a row at a frame is not known there: confidence 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from thinkjepa.cache import ReferenceFrame, VideoLabels
from thinkjepa.stages.data.labels.contract import (
    MAX_EXPANSION,
    MAX_FRAMES,
    MAX_SAMPLES,
    LabelError,
    LabelReader,
    Poses,
    Positions,
    check_extent,
    check_names,
)

NEEDED = {"frame": pa.int64(), "joint": pa.string(), "x": pa.float64(), "y": pa.float64(), "z": pa.float64()}
INTRINSICS = ("fx", "fy", "cx", "cy")
OPTIONAL = {
    "confidence": pa.float64(),
    "reference_frame": pa.string(),
    **dict.fromkeys(INTRINSICS, pa.float64()),
    "description": pa.string(),
}
TYPES = NEEDED | OPTIONAL
VIDEO = "video"


def read(path: Path) -> VideoLabels:
    """Joints of one video. Raises LabelError for a broken table, OSError where it cannot be opened."""
    return _labels(_table(path, TYPES), file_bytes=path.stat().st_size)


def read_folder(path: Path) -> dict[str, Callable[[], VideoLabels]]:
    """Joints of each video of a folder's table, made when called, by the video's path under the folder.

    Raises LabelError where the table is broken as a whole, OSError where it cannot be opened.
    """
    table = _table(path, {VIDEO: pa.string(), **TYPES})
    if VIDEO not in table.column_names:
        raise LabelError(f"has no column {VIDEO!r} with the video of each row, as a table of a folder has")
    table = table.take(pc.sort_indices(table[VIDEO]))
    rows, begin, file_bytes = table.drop_columns([VIDEO]), 0, path.stat().st_size
    by_video: dict[str, Callable[[], VideoLabels]] = {}
    for item in pc.value_counts(table[VIDEO].combine_chunks()):  # in order of the sorted rows
        name, count = item["values"].as_py(), item["counts"].as_py()
        if name is None:
            raise LabelError(f"has {count} rows without a {VIDEO}")
        by_video[name] = partial(_labels, rows.slice(begin, count), file_bytes=file_bytes)
        begin += count
    return by_video


def _table(path: Path, types: Mapping[str, pa.DataType]) -> pa.Table:
    with path.open("rb") as file:
        try:
            is_parquet = path.suffix == ".parquet"
            table = _read_parquet(file, path, types) if is_parquet else _read_csv(file, types)
            _check_columns(table.column_names, types)
            return table.cast(pa.schema([(name, types[name]) for name in table.column_names]))
        except MemoryError:
            raise
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())[:160]
            raise LabelError(f"cannot be read as {path.suffix[1:]}: {reason}") from error


def _read_csv(file: object, types: Mapping[str, pa.DataType]) -> pa.Table:
    return pyarrow.csv.read_csv(
        file,
        read_options=pyarrow.csv.ReadOptions(use_threads=False),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict(types)),
    )


def _read_parquet(file: object, path: Path, types: Mapping[str, pa.DataType]) -> pa.Table:
    source = pq.ParquetFile(file, page_checksum_verification=True)
    most = min(MAX_SAMPLES, MAX_EXPANSION * path.stat().st_size)
    if source.metadata.num_rows > most:
        raise LabelError(
            f"has {source.metadata.num_rows:,} rows, at most {most:,} are allowed in a file of its size"
        )
    _check_columns(source.schema_arrow.names, types)
    return source.read(use_threads=False)


def _check_columns(names: list[str], types: Mapping[str, pa.DataType]) -> None:
    if missing := [name for name in NEEDED if name not in names]:
        raise LabelError(f"has no column {missing[0]!r}; it has {', '.join(map(repr, names[:12]))}")
    unknown = [name for name in names if name not in types or names.count(name) > 1]
    if unknown:
        raise LabelError(
            f"column {unknown[0]!r} is unknown or there twice: remove it; known are {', '.join(types)}"
        )
    if set(names) & set(INTRINSICS) not in (set(), set(INTRINSICS)):
        raise LabelError(f"has some of the columns {', '.join(INTRINSICS)}: give all four or none")


def _labels(table: pa.Table, *, file_bytes: int) -> VideoLabels:
    """The joints in the rows of one video. Raises LabelError where they are no labels."""
    if not len(table):
        raise LabelError("has no rows")
    for name in table.column_names:
        if table[name].null_count:
            row = int(pc.index(pc.is_null(table[name]), True).as_py())
            raise LabelError(f"row {row} has no {name}: leave the row out where nothing is known")
    frames = table["frame"].to_numpy()
    encoded = table["joint"].combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    joints, numbers = encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)
    _check_frames(frames)
    check_names(joints)
    num_frames = int(frames.max()) + 1
    check_extent(num_frames, len(joints), file_bytes=file_bytes)
    _check_single(frames, numbers, joints)
    return VideoLabels(
        source="table",
        reference_frame=_reference_frame(table),
        joint_names=tuple(joints),
        positions_m=_positions(table, frames, numbers, (num_frames, len(joints), 3)),
        confidences=_confidences(table, frames, numbers, (num_frames, len(joints))),
        intrinsics=_intrinsics(table),
        description=str(_constant(table, "description") or ""),
    )


def _check_frames(frames: npt.NDArray[np.int64]) -> None:
    if frames.min() < 0 or frames.max() >= MAX_FRAMES:
        wrong = frames[(frames < 0) | (frames >= MAX_FRAMES)][0]
        raise LabelError(f"frame {wrong} is not from 0 to {MAX_FRAMES - 1:,}")


def _check_single(frames: npt.NDArray[np.int64], numbers: npt.NDArray[np.int32], joints: list[str]) -> None:
    keys = np.sort(frames * len(joints) + numbers)
    if len(twice := keys[1:][np.diff(keys) == 0]):
        frame, joint = divmod(int(twice[0]), len(joints))
        raise LabelError(f"frame {frame} has joint {joints[joint]!r} more than once")


def _positions(
    table: pa.Table,
    frames: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.int32],
    shape: tuple[int, int, int],
) -> Positions:
    positions_m = np.zeros(shape, dtype=np.float32)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is refused by name
        for axis, name in enumerate("xyz"):
            positions_m[frames, numbers, axis] = table[name].to_numpy()
    return positions_m


def _confidences(
    table: pa.Table, frames: npt.NDArray[np.int64], numbers: npt.NDArray[np.int32], shape: tuple[int, int]
) -> Positions:
    confidences = np.zeros(shape, dtype=np.float32)
    with np.errstate(over="ignore"):
        confidences[frames, numbers] = (
            table["confidence"].to_numpy() if "confidence" in table.column_names else 1.0
        )
    return confidences


def _reference_frame(table: pa.Table) -> ReferenceFrame:
    value = _constant(table, "reference_frame")
    if value not in (None, "camera", "world"):
        raise LabelError(f"reference_frame is {value!r}, allowed are camera and world")
    return "world" if value == "world" else "camera"


def _intrinsics(table: pa.Table) -> Poses | None:
    fx, fy, cx, cy = (_constant(table, name) for name in INTRINSICS)
    return None if fx is None else np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=np.float64)


def _constant(table: pa.Table, name: str) -> object:
    """The value that a column has in every row, None where there is no such column."""
    if name not in table.column_names:
        return None
    values = pc.unique(table[name]).to_pylist()
    if len(values) > 1:
        raise LabelError(f"column {name!r} changes from {values[0]!r} to {values[1]!r}: one value is allowed")
    return values[0]


READER = LabelReader(
    suffixes=(".csv", ".parquet", ".joints.csv", ".joints.parquet"),
    read=read,
    folder_files=("joints.parquet", "joints.csv"),
    read_folder=read_folder,
)
