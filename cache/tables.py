"""Parquet tables of the frozen records."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from thinkjepa.cache.errors import CacheError
from thinkjepa.cache.ledger import replace_listed
from thinkjepa.cache.records import ClipRow, Failure, IndexRow

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
    ]
)

INDEX_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("status", pa.string()),
        ("row", pa.int64()),
        ("shard", pa.int64()),
        ("token_count", pa.int32()),
        ("prompt_token_count", pa.int32()),
        ("token_ids", pa.list_(pa.int32())),
        ("generated_text", pa.string()),
        ("checksum", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
    ]
)

FAILURES_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("video", "stage", "reason", "clip_id", "video_digest")]
)


def write_table(path: Path, records: Iterable[ClipRow | IndexRow | Failure], schema: pa.Schema) -> None:
    """Write records as one parquet file, atomically; the same records give the same bytes."""
    write_arrow(path, pa.Table.from_pylist([asdict(record) for record in records], schema=schema))


READING = {"page_checksum_verification": True, "use_threads": False}
"""For `pq.read_table`: Arrow's threads may outlive the interpreter and abort it at its very end
(apache/arrow#34314), with a status that says failed though all was done. Our tables are small.
"""


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write a table as one parquet file, atomically."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    replace_listed(path, buffer.getvalue())


def read_table(path: Path, record: type[Record], schema: pa.Schema) -> list[Record]:
    """Read records back. Raises CacheError on a damaged file or missing columns."""
    try:
        rows = pq.read_table(path, columns=schema.names, **READING).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise CacheError(
            f"cannot read {str(path)!r}: {error}; restore it, or extract into a new cache"
        ) from error
    return [record(**frozen(row)) for row in rows]


def frozen(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as read from parquet, its lists as tuples, ready for a frozen record."""
    return {name: _tuples(value) for name, value in row.items()}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
