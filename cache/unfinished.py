"""Checking what an interrupted run left: its journal and the chunks that were committed to an open shard."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from thinkjepa.cache.layout import assigned_file, journal_dir, shard_file
from thinkjepa.cache.ledger import checked_lines
from thinkjepa.cache.records import ArraySpec, FeatureSet
from thinkjepa.cache.shard import CRC_BYTES, ChunkEntry, crc32c


def unfinished_faults(root: Path, feature_set: FeatureSet) -> Iterator[tuple[str, str]]:
    """Clips (empty: a journal) with what is wrong: damaged lines, chunks not as they were written."""
    plan = assigned_file(root, feature_set.name)
    if plan.exists():
        yield from (("", f"{str(plan)!r}: {reason}") for reason in checked_lines(plan.read_bytes())[1])
    for path in sorted(journal_dir(root, feature_set.name).glob("[0-9]*.jsonl")):
        yield from _journal_faults(path, root, feature_set)


def _journal_faults(path: Path, root: Path, feature_set: FeatureSet) -> Iterator[tuple[str, str]]:
    lines, damage = checked_lines(path.read_bytes())
    yield from (("", f"{str(path)!r}: {reason}") for reason in damage)
    if not lines or "shard" not in lines[0]:
        return
    shard = int(lines[0]["shard"])
    for line in lines[1:]:
        clips = {int(row["row"]) % feature_set.rows_per_shard: str(row["clip_id"]) for row in line["rows"]}
        for name, chunks in line["chunks"].items():
            spec = feature_set.arrays[name]
            file = _open_shard(root, feature_set, spec, shard)
            for number in _damaged_chunks(file, chunks):
                clip_id = clips.get(number // math.prod(spec.chunk_grid), "")
                reason = f"array {name}, inner chunk {number} of the unfinished shard is damaged or missing"
                yield clip_id, reason


def _open_shard(root: Path, feature_set: FeatureSet, spec: ArraySpec, shard: int) -> Path:
    """The file of a shard that an interrupted run left: unfinished, or just sealed."""
    sealed = shard_file(root, feature_set.name, spec.name, shard=shard, rank=1 + len(spec.shape))
    return sealed if sealed.exists() else sealed.with_name(sealed.name + ".partial")


def _damaged_chunks(path: Path, chunks: Iterable[ChunkEntry]) -> Iterator[int]:
    """Numbers of the chunks whose bytes in a file do not have their crc32c."""
    if not path.exists():
        yield from (number for number, _, _ in chunks)
        return
    with path.open("rb") as file:
        for number, offset, size in chunks:
            file.seek(offset)
            raw = np.frombuffer(file.read(size), dtype=np.uint8)
            if len(raw) < size or crc32c(raw[:-CRC_BYTES]) != int.from_bytes(
                raw[-CRC_BYTES:].tobytes(), "little"
            ):
                yield number
