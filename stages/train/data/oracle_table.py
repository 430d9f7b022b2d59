"""Tables beside the clips, csv or parquet: values of columns by clip.

A table names clips by `clip_id`, or whole videos by `video`, their relative path as the cache has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from thinkjepa.cache import ClipSelection
from thinkjepa.stages.errors import StageError

KEYS = ("clip_id", "video")


def columns_by_clip(path: Path, columns: Sequence[str], clips: ClipSelection) -> dict[str, dict[str, str]]:
    """Values by clip of each column, as text, of those clips that have one.

    Raises StageError where the table cannot be read, lacks a column, or has two values for one clip or video.
    """
    table = _read(path)
    key = next((name for name in KEYS if name in table.column_names), None)
    for column in columns:
        if key is None or column not in table.column_names or column in KEYS:
            raise StageError(
                f"--oracle-table {str(path)!r} has columns {', '.join(table.column_names)}; it needs clip_id "
                f"or video, and {column!r}, which --guidance-source names"
            )
    assert key is not None, "asked for no column"
    id_of = dict(zip(clips.clip_ids.to_pylist(), clips.values(key), strict=True))
    found = {}
    for column in columns:
        values = _values(table, key, column, path)
        found[column] = {clip_id: values[name] for clip_id, name in id_of.items() if name in values}
    return found


def _values(table: pa.Table, key: str, column: str, path: Path) -> dict[str, str]:
    """The column's values by key. Raises StageError for two values of one key."""
    values: dict[str, str] = {}
    rows = zip(table[key].to_pylist(), table[column].to_pylist(), strict=True)
    for name, value in ((str(name), str(value)) for name, value in rows if value not in (None, "")):
        if values.setdefault(name, value) != value:
            raise StageError(
                f"--oracle-table {str(path)!r} has two values of {column!r} for {key} {name!r}: keep one"
            )
    return values


def _read(path: Path) -> pa.Table:
    try:
        if path.suffix.lower() == ".parquet":
            return pyarrow.parquet.read_table(path)
        return pyarrow.csv.read_csv(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise StageError(
            f"--oracle-table {str(path)!r} cannot be read as csv or parquet: {reason}"
        ) from error
