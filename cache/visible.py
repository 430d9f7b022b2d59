"""What a reader may see: clip rows, and the index rows of sealed shards."""

from __future__ import annotations

from pathlib import Path

from thinkjepa.cache.layout import clips_dir, index_dir
from thinkjepa.cache.records import ClipRow, IndexRow
from thinkjepa.cache.tables import CLIPS_SCHEMA, INDEX_SCHEMA, numbered_files, read_table


def read_clips(root: Path) -> dict[tuple[str, str, str], ClipRow]:
    """Clip rows by (clip_id, thinker_sampling, dense_sampling); the newest row of a key holds."""
    rows = (
        row for path in numbered_files(clips_dir(root)) for row in read_table(path, ClipRow, CLIPS_SCHEMA)
    )
    return {(row.clip_id, row.thinker_sampling, row.dense_sampling): row for row in rows}


def read_index(root: Path, set_name: str) -> dict[str, IndexRow]:
    """The row of each clip in a set: its features where it has any, else its last failure."""
    found: dict[str, IndexRow] = {}
    for path in numbered_files(index_dir(root, set_name)):
        for row in read_table(path, IndexRow, INDEX_SCHEMA):
            earlier = found.get(row.clip_id)
            if earlier is None or earlier.status != "ok":
                found[row.clip_id] = row
    return found
