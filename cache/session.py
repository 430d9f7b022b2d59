"""Writing a cache: the session that has its lock, and a writer that fills one shard after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from thinkjepa.cache.disk.checksums import NAME as LEDGER
from thinkjepa.cache.disk.checksums import STAGING, adopt, sweep, tidy
from thinkjepa.cache.disk.files import explained_os_errors, make_folder, refuse_links_out, replace_file
from thinkjepa.cache.disk.layout import (
    cache_json,
    clips_dir,
    failures_file,
    index_dir,
    index_file,
    journal_file,
)
from thinkjepa.cache.disk.lines import LineFile, encoded, read_lines
from thinkjepa.cache.disk.lock import WAIT, WriteLock, ask_writers_to_stop
from thinkjepa.cache.records import (
    DROPPED,
    CacheError,
    ClipFeatures,
    ClipRow,
    Failure,
    FeatureSet,
    IndexRow,
)
from thinkjepa.cache.shards.assignment import assign, assigned, forget, next_shard, unfinished_shards
from thinkjepa.cache.shards.metadata import create_arrays, restore_metadata
from thinkjepa.cache.shards.write import PATIENCE_S, OpenShard, journal_rows
from thinkjepa.cache.tables.catalog import (
    read_catalog,
    read_last_extraction,
    resolve_set,
    write_catalog,
    write_last_extraction,
)
from thinkjepa.cache.tables.clips import ClipTable
from thinkjepa.cache.tables.index import SetIndex, join_index_files
from thinkjepa.cache.tables.labels import LabelTable, VideoLabels, write_labels
from thinkjepa.cache.tables.parquet import CLIPS_SCHEMA, FAILURES_SCHEMA, next_number, read_table, write_table
from thinkjepa.cache.upkeep.removal import clear_unknown, finish_removal


class SetWriter:
    """Appends batches of clips to one feature set of a cache that this process has locked.

    As a context manager it seals the open shard on a normal exit. After an exception the shard stays open
    with its journal, and the next writer of the set continues after the last committed batch.
    """

    def __init__(self, root: Path, feature_set: FeatureSet) -> None:
        self.root = root
        self.feature_set = feature_set
        create_arrays(root, feature_set)
        forget(root, feature_set.name)
        self._open: OpenShard | None = None
        for number in unfinished_shards(root, feature_set.name):
            self._seal()  # of several that were left open the last one is continued
            self._open = OpenShard(root, feature_set, number)
        if self._open and self._open.is_full:
            self._seal()

    @property
    def unsealed_rows(self) -> Sequence[IndexRow]:
        """Rows committed to the journal and not yet visible to readers."""
        return self._open.rows if self._open else ()

    def append(self, batch: Sequence[ClipFeatures], failures: Sequence[Failure] = ()) -> list[Failure]:
        """Commit a batch. Features that are not finite or misshapen are refused, recorded and returned."""
        refused: list[Failure] = []
        remaining, lost = list(batch), list(failures)
        while remaining or lost:
            shard = self._shard()
            room = self.feature_set.rows_per_shard - shard.used
            now, remaining = remaining[:room], remaining[room:]
            refused += shard.append(now, lost)
            lost = []
            if shard.is_full:
                self._seal()
        return refused

    def __enter__(self) -> SetWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._seal()
        finally:
            if self._open:
                self._open.close()

    def _shard(self) -> OpenShard:
        if self._open is None:
            self._open = OpenShard(self.root, self.feature_set, next_shard(self.root, self.feature_set.name))
        return self._open

    def _seal(self) -> None:
        if self._open is None:
            return
        if self._open.rows:
            with self._open:
                pass
        else:
            self._open.discard()
        self._open = None
        join_index_files(index_dir(self.root, self.feature_set.name))


def done_clip_ids(writer: SetWriter) -> set[str]:
    """Clips with features in the set, visible or committed to the open shard."""
    visible = SetIndex(writer.root, writer.feature_set.name).clip_ids.to_pylist()
    return {*visible, *(row.clip_id for row in writer.unsealed_rows if row.status == "ok")}


REMEDY = f"{WAIT} (thinkjepa-cache extract does so with --wait), or choose another --cache-dir"

OURS = (".lock", ".holder.json", LEDGER)
"""Files, next to staging ones, of a folder whose cache is not made yet: a run ended before it was."""


def _is_foreign(path: Path) -> bool:
    """True if a file of a folder without a catalog was not left by a run that was making a cache."""
    return path.name not in OURS and not any(path.match(pattern) for pattern in STAGING)


class WriteSession:
    """The lock on writing a cache, a context manager. The cache is created in a new or empty folder.

    The process that has it assigns clips to shards. Other processes can write these shards, each with
    `OpenShard` and the session's `token`. Raises CacheError where the folder is no cache, of another schema,
    or locked by another process. With `on_wait` it passes a note that names the other process, and waits.
    """

    def __init__(self, root: Path, *, on_wait: Callable[[str], None] | None = None) -> None:
        self.root = root
        self._lock = WriteLock(root, remedy=REMEDY, on_wait=on_wait)
        with explained_os_errors("create", root):
            make_folder(root)
            if not cache_json(root).exists() and any(map(_is_foreign, root.iterdir())):
                raise CacheError(
                    f"{str(root)!r} is not empty and not a feature cache: choose a new or empty folder"
                )
            refuse_links_out(root)

    def __enter__(self) -> WriteSession:
        with ExitStack() as held:
            held.enter_context(self._lock)
            self._prepare()
            self._held = held.pop_all()
        return self

    @property
    def token(self) -> str:
        """The token that writers of this session's shards check."""
        return self._lock.token

    def _prepare(self) -> None:
        """Read the catalog, remove the partial files of killed runs, and finish what they began."""
        if not cache_json(self.root).exists():
            write_catalog(self.root, {})
        feature_sets = read_catalog(self.root)
        for left in self.root.glob("*/journal.jsonl"):
            raise CacheError(
                f"{str(left)!r} was left by an extraction of an earlier version: finish that one first, or "
                "remove the file: the clips of its unfinished shard are then extracted again"
            )
        sweep(self.root)
        self.feature_sets = finish_removal(self.root, feature_sets)
        clear_unknown(self.root, self.feature_sets)
        restore_metadata(self.root, self.feature_sets)
        adopt(self.root)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._held:
            if kind is None:
                tidy(self.root)

    def resolve(self, wanted: FeatureSet) -> FeatureSet:
        """The existing set that serves as `wanted`, also one with more layers, or a new one."""
        found = resolve_set(wanted, self.feature_sets)
        if found.name not in self.feature_sets:
            self.feature_sets[found.name] = found
            write_catalog(self.root, self.feature_sets)
        return found

    @property
    def last_extraction(self) -> Mapping[str, Any]:
        """The record of the last extraction, empty where there is none."""
        return read_last_extraction(self.root)

    def remember(self, record: Mapping[str, Any]) -> None:
        """Keep the sets and settings of an extraction for the next one."""
        write_last_extraction(self.root, record)

    def add_clips(self, clips: Sequence[ClipRow]) -> None:
        """Store the clips that are new or whose row changed (a renamed video)."""
        known = ClipTable(self.root).find_all(clips)
        changed = [clip for clip, stored in zip(clips, known, strict=True) if stored != clip]
        if changed:
            number = next_number(clips_dir(self.root))
            write_table(clips_dir(self.root) / f"{number:06d}.parquet", changed, CLIPS_SCHEMA)

    def add_labels(self, labels: Iterable[VideoLabels]) -> int:
        """Store labels that are new, or whose file changed. Returns the number of these videos."""
        known = LabelTable(self.root)
        return write_labels(
            self.root, (item for item in labels if known.label_digest(item.video_digest) != item.label_digest)
        )

    def writer(self, feature_set: FeatureSet) -> SetWriter:
        """A writer that continues where an interrupted run stopped."""
        return SetWriter(self.root, feature_set)

    def assigned(self, feature_set: FeatureSet) -> dict[int, tuple[str, ...]]:
        """Clips by shard, of the shards that an interrupted run assigned and did not finish.

        Shards that were begun without an assignment are sealed first.
        """
        plan = assigned(self.root, feature_set.name)
        for number in unfinished_shards(self.root, feature_set.name):
            if number not in plan:
                with OpenShard(self.root, feature_set, number):
                    pass
        return plan

    def assign(self, feature_set: FeatureSet, groups: Sequence[Sequence[str]]) -> list[int]:
        """Give each group of clips, at most `rows_per_shard` of them, a new shard. Returns their numbers."""
        return assign(self.root, feature_set, groups)

    def pending(self, feature_set: FeatureSet, shard: int, clip_ids: Iterable[str]) -> set[str]:
        """The clips of an assigned shard without committed features or a committed failure."""
        sealed = index_file(self.root, feature_set.name, shard)  # joined with others when all is written
        if sealed.exists():
            return set()
        journal = read_lines(journal_file(self.root, feature_set.name, shard))
        return set(clip_ids) - {row.clip_id for row in journal_rows(journal)}

    def done_clip_ids(self, feature_set: FeatureSet) -> set[str]:
        """Clips with features in the set that readers can see."""
        return set(SetIndex(self.root, feature_set.name).clip_ids.to_pylist())

    def unfinished_failures(self, feature_set: FeatureSet) -> dict[str, Failure]:
        """Failed clips, by id, in the shards that an interrupted run did not finish.

        They stay failed until `retry_unfinished_failures` is called.
        """
        name, done = feature_set.name, self.done_clip_ids(feature_set)
        journals = [journal_file(self.root, name, number) for number in unfinished_shards(self.root, name)]
        rows = [row for path in journals for row in journal_rows(read_lines(path))]
        return {
            row.clip_id: row.failure for row in rows if row.status == "failed" and row.clip_id not in done
        }

    def retry_unfinished_failures(self, feature_set: FeatureSet) -> None:
        """Make the failed clips of unfinished shards pending again."""
        for number in unfinished_shards(self.root, feature_set.name):
            path = journal_file(self.root, feature_set.name, number)
            with LineFile(path, patience_s=PATIENCE_S) as journal:
                lines = journal.resume()
                kept = [_without_failures(line) for line in lines]
                if kept != lines:
                    replace_file(path, encoded(kept))

    def failed_clips(self, feature_set: FeatureSet) -> dict[str, Failure]:
        """Failed clips, by id, in complete shards, without those that verify has dropped."""
        rows = SetIndex(self.root, feature_set.name).failed.values()
        return {row.clip_id: row.failure for row in rows if row.stage != DROPPED}

    def ask_writers_to_stop(self) -> None:
        """Ask the writers of assigned shards to end after their current batch."""
        ask_writers_to_stop(self.root)

    def finish(self, feature_set: FeatureSet) -> None:
        """Join the index files, and forget the assignment, after all of it is written.

        Raises CacheError where an assigned shard is not complete.
        """
        if left := assigned(self.root, feature_set.name):
            raise CacheError(
                f"{len(left)} shards of {feature_set.name!r} were begun and are not complete: run the same "
                "command again"
            )
        join_index_files(index_dir(self.root, feature_set.name))
        forget(self.root, feature_set.name)

    def record_failures(self, failures: Iterable[Failure], *, videos: Iterable[str]) -> None:
        """Replace the recorded failures of `videos`. Those of other videos stay."""
        path, again = failures_file(self.root), set(videos)
        earlier = read_table(path, Failure, FAILURES_SCHEMA) if path.exists() else []
        kept = [failure for failure in earlier if failure.video not in again]
        records = sorted(
            {*kept, *failures}, key=lambda item: (item.video, item.clip_id, item.stage, item.reason)
        )
        if records or path.exists():
            write_table(path, records, FAILURES_SCHEMA)


def _without_failures(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a journal without its failed rows. The first line has no rows."""
    if "rows" not in line:
        return dict(line)
    return {**line, "rows": [row for row in line["rows"] if row["status"] != "failed"]}
