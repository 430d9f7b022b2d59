"""Assignment of clips to shards, by the process that has the cache locked, before any of them is written.

Any number of processes can then write, each a shard of its own. The shard of a clip depends on the plan
alone, never on which process was faster. The assignment is durable: a run that was killed continues with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from thinkjepa.cache.disk.files import remove_file
from thinkjepa.cache.disk.layout import assigned_file, index_dir, journal_dir, journal_file
from thinkjepa.cache.disk.lines import LineFile, read_lines
from thinkjepa.cache.records import FeatureSet
from thinkjepa.cache.shards.metadata import create_arrays, grow
from thinkjepa.cache.tables.parquet import next_number, numbered_files


def assign(root: Path, feature_set: FeatureSet, groups: Sequence[Sequence[str]]) -> list[int]:
    """Give each group of clips, in order, a new shard. Returns their numbers.

    The arrays grow at once, so that writers need not change their metadata.
    """
    if not groups:
        return []
    name = feature_set.name
    first = next_shard(root, name)
    create_arrays(root, feature_set)
    with LineFile(assigned_file(root, name)) as file:
        file.resume()
        file.append([{"first": first, "groups": [list(group) for group in groups]}])
    for array in feature_set.arrays:
        grow(root, name, array, (first + len(groups)) * feature_set.rows_per_shard)
    return list(range(first, first + len(groups)))


def assigned(root: Path, set_name: str) -> dict[int, tuple[str, ...]]:
    """Clips by shard, of all shards that were assigned and are not visible yet."""
    visible = _visible_shards(root, set_name)
    return {
        number: tuple(group)
        for line in read_lines(assigned_file(root, set_name))
        for number, group in enumerate(line["groups"], start=line["first"])
        if number not in visible
    }


def forget(root: Path, set_name: str) -> None:
    """Remove the assignment: all of it is written, or the rest is not to be."""
    remove_file(assigned_file(root, set_name))


def next_shard(root: Path, set_name: str) -> int:
    """The number after all shards that are visible, being written, or assigned."""
    journals = [int(path.stem) for path in journal_dir(root, set_name).glob("[0-9]*.jsonl")]
    ends = [line["first"] + len(line["groups"]) - 1 for line in read_lines(assigned_file(root, set_name))]
    last: int = max([next_number(index_dir(root, set_name)) - 1, *journals, *ends])
    return last + 1


def is_visible(root: Path, set_name: str, shard: int) -> bool:
    """True if readers see the shard."""
    return shard in _visible_shards(root, set_name)


def _visible_shards(root: Path, set_name: str) -> set[int]:
    files = numbered_files(index_dir(root, set_name))
    return {number for item in files for number in range(item.first, item.last + 1)}


def is_unfinished(root: Path, set_name: str) -> bool:
    """True if a run is writing the set, or was interrupted."""
    begun = any(journal_dir(root, set_name).glob("[0-9]*.jsonl"))
    return begun or assigned_file(root, set_name).exists()


def unfinished_shards(root: Path, set_name: str) -> list[int]:
    """Shards that were begun and are not visible yet, in order. Journals of sealed shards are removed.

    The caller has the cache locked, and no other process writes to it.
    """
    visible = _visible_shards(root, set_name)
    unfinished = []
    for path in sorted(journal_dir(root, set_name).glob("[0-9]*.jsonl")):
        number = int(path.stem)
        if number in visible:
            remove_file(journal_file(root, set_name, number))
        else:
            unfinished.append(number)
    return unfinished
