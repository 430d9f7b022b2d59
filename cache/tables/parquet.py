"""Parquet files of the frozen records: single ones, and folders of numbered ones."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from thinkjepa.cache.disk.checksums import replace_listed
from thinkjepa.cache.disk.kept import KeptFile
from thinkjepa.cache.records import CacheError, ClipRow, Failure, IndexRow

Positions = npt.NDArray[np.int64]

Record = TypeVar("Record", ClipRow, IndexRow, Failure)

CLIPS_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("video", pa.string()),
        ("video_digest", pa.string()),
        ("thinker_sampling", pa.string()),
        ("dense_sampling", pa.string()),
        ("split_frame", pa.int64()),
        ("split_time_s", pa.float64()),
        ("thinker_frames", pa.list_(pa.int64())),
        ("thinker_times_s", pa.list_(pa.float64())),
        ("observed_frames", pa.list_(pa.int64())),
        ("observed_times_s", pa.list_(pa.float64())),
        ("future_frames", pa.list_(pa.list_(pa.int64()))),
        ("future_times_s", pa.list_(pa.list_(pa.float64()))),
        ("group", pa.string()),
        ("partition", pa.string()),
    ]
)

INDEX_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("status", pa.string()),
        ("row", pa.int64()),
        ("shard", pa.int64()),
        ("token_count", pa.int32()),
        ("slot_count", pa.int32()),
        ("text_count", pa.int32()),
        ("frame_width_px", pa.int32()),
        ("frame_height_px", pa.int32()),
        ("prompt_token_count", pa.int32()),
        ("token_ids", pa.list_(pa.int32())),
        ("generated_text", pa.string()),
        ("checksum", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
    ]
)

ADDED_COLUMNS = ("slot_count", "text_count", "frame_width_px", "frame_height_px", "group", "partition")
"""Columns that files of versions up to 0.2 lack. They are 0 there, texts are empty."""

FAILURES_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("video", "stage", "reason", "clip_id", "video_digest")]
)


def write_table(path: Path, records: Iterable[ClipRow | IndexRow | Failure], schema: pa.Schema) -> None:
    """Write records as one parquet file, atomically. The same records give the same bytes."""
    write_arrow(path, pa.Table.from_pylist([asdict(record) for record in records], schema=schema))


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write a table as one parquet file, atomically."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    replace_listed(path, buffer.getvalue())


def read_table(path: Path, record: type[Record], schema: pa.Schema) -> list[Record]:
    """Read records back. Raises CacheError on a damaged file or missing columns."""
    return [record(**frozen(row)) for row in read_arrow(path, schema).to_pylist()]


def read_kept(file: KeptFile, record: type[Record], schema: pa.Schema) -> list[Record]:
    """Records of a file that was opened before. Raises CacheError on a damaged file or missing columns."""
    rows = ParquetRows(file.path.parent, columns=schema.names, schema=schema, kept=[file])
    return [record(**frozen(row)) for row in rows.take(np.arange(len(rows), dtype=np.int64))]


def read_arrow(path: Path, schema: pa.Schema) -> pa.Table:
    """The columns of a schema. Raises CacheError on a damaged file or missing columns."""
    try:
        with path.open("rb") as raw:
            return _read_columns(raw, schema)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise _unreadable(path, error) from error


def _read_columns(raw: BinaryIO, schema: pa.Schema) -> pa.Table:
    """Without Arrow's threads, which may outlive the interpreter and abort it at its very end.

    The exit status then says failed though all was done (apache/arrow#34314). The threads would also keep
    some megabytes each for the next reading. Our tables are small.
    """
    with pq.ParquetFile(raw, page_checksum_verification=True) as file:
        held = [name for name in schema.names if name not in ADDED_COLUMNS or name in file.schema_arrow.names]
        table = file.read(columns=held, use_threads=False)
        num_rows = file.metadata.num_rows
    for name in schema.names:
        if name not in held:
            empty = "" if schema.field(name).type == pa.string() else 0
            table = table.append_column(name, pa.repeat(empty, num_rows))
    return table.select(schema.names).cast(schema)


def _unreadable(path: Path, error: Exception) -> CacheError:
    reason = " ".join(str(error).split())[:200]
    return CacheError(
        f"cannot read {str(path)!r}: {reason}; restore it from a copy, or extract into a new cache"
    )


def frozen(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as read from parquet, its lists as tuples, ready for a frozen record."""
    return {name: _tuples(value) for name, value in row.items()}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


TRIES = 5
"""A writer may join small files into one between listing and opening them: then they are listed again."""


@dataclass(frozen=True, slots=True)
class NumberedFile:
    """A file of one number, `000007.parquet`, or of all from first to last, `000000-000063.parquet`."""

    path: Path
    first: int
    last: int


def numbered_files(folder: Path, suffix: str = ".parquet") -> list[NumberedFile]:
    """The files of a folder in the order of their numbers, without those that are in a joined file."""
    found = sorted(map(_parse, folder.glob(f"[0-9]*{suffix}")), key=lambda item: (item.first, -item.last))
    files: list[NumberedFile] = []
    for item in found:
        if not files or item.first > files[-1].last:
            files.append(item)
    return files


def next_number(folder: Path, suffix: str = ".parquet") -> int:
    """The number after the last file's."""
    files = numbered_files(folder, suffix)
    return files[-1].last + 1 if files else 0


def _parse(path: Path) -> NumberedFile:
    first, _, last = path.stem.partition("-")
    return NumberedFile(path, int(first), int(last or first))


def release_unused() -> None:
    """Return the memory that Arrow keeps for its next reading."""
    pa.default_memory_pool().release_unused()


def keep_files(folder: Path) -> list[KeptFile]:
    """The numbered files of a folder as they are now, in the order of their numbers."""
    for _ in range(TRIES):
        try:
            return [KeptFile(item.path) for item in numbered_files(folder)]
        except FileNotFoundError:
            continue
    raise CacheError(f"{str(folder)!r}: its files vanish while they are read; run the same command again")


class ParquetRows:
    """Rows of all numbered files of a folder, by their position in the order of the files.

    They are those of its opening: what a writer joins or removes afterwards is read as it was.
    """

    def __init__(
        self, folder: Path, *, columns: Sequence[str], schema: pa.Schema, kept: Sequence[KeptFile] | None
    ) -> None:
        """Read `columns` of all files, of those `kept` or of the present ones.

        Raises CacheError for a damaged file.
        """
        self._schema = schema
        self._files = keep_files(folder) if kept is None else list(kept)
        tables = [self._read(file, columns) for file in self._files]
        self._starts = np.cumsum([0, *(table.num_rows for table in tables)])
        empty = pa.schema([schema.field(name) for name in columns]).empty_table()
        self._table: pa.Table = pa.concat_tables([empty, *tables])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def release(self, name: str) -> pa.Array:
        """A column that was read, as one array. The table drops it."""
        chunked = self._table[name]
        self._table = self._table.drop_columns([name])
        return pa.concat_arrays(chunked.chunks) if chunked.num_chunks > 1 else chunked.chunk(0)

    def read_column(self, name: str) -> pa.Array:
        """A column of all rows that was not read at the beginning."""
        parts = [self._read(file, [name])[name] for file in self._files]
        return pa.concat_arrays(
            [chunk for part in parts for chunk in part.chunks]
            or [pa.array([], self._schema.field(name).type)]
        )

    def take(self, positions: Positions, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Rows in the given order, all columns or the named ones. A run of rows of a file is read at once."""
        owners = np.searchsorted(self._starts, positions, side="right") - 1
        start = 0
        while start < len(positions):
            stop = start
            while stop < len(positions) and owners[stop] == owners[start]:
                stop += 1
            table = self._read(self._files[owners[start]], columns or self._schema.names)
            inside = positions[start:stop] - self._starts[owners[start]]
            yield from table.take(pa.array(inside)).to_pylist()
            start = stop

    def _read(self, file: KeptFile, columns: Sequence[str]) -> pa.Table:
        try:
            with file.open() as raw:
                return _read_columns(raw, pa.schema([self._schema.field(name) for name in columns]))
        except (OSError, pa.ArrowException, ValueError) as error:
            raise _unreadable(file.path, error) from error
