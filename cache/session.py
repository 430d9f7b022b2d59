"""Exclusive write access to a cache: adding feature sets, clips and failures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from thinkjepa.cache.catalog import read_catalog, resolve_set, write_catalog
from thinkjepa.cache.clips import ClipTable
from thinkjepa.cache.disk import explained_os_errors
from thinkjepa.cache.errors import CacheError
from thinkjepa.cache.index import SetIndex
from thinkjepa.cache.labels import LabelTable, VideoLabels, write_labels
from thinkjepa.cache.layout import cache_json, clips_dir, failures_file, lock_file
from thinkjepa.cache.ledger import adopt, sweep, tidy
from thinkjepa.cache.parquet_rows import next_number
from thinkjepa.cache.records import ClipRow, Failure, FeatureSet
from thinkjepa.cache.tables import CLIPS_SCHEMA, FAILURES_SCHEMA, read_table, write_table
from thinkjepa.cache.writer import SetWriter


class WriteSession:
    """Holds a cache for writing; a context manager. Creates the cache where the folder is new or empty.

    Raises CacheError where the folder is something else, of another schema or held by another process.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        with explained_os_errors("create", root):
            root.mkdir(parents=True, exist_ok=True)
            if not cache_json(root).exists() and any(path.name != ".lock" for path in root.iterdir()):
                raise CacheError(
                    f"{str(root)!r} is not empty and not a feature cache: choose a new or empty folder"
                )
            self._lock = FileLock(lock_file(root))

    def __enter__(self) -> WriteSession:
        with explained_os_errors("lock", lock_file(self.root)):
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise CacheError(
                    f"{str(self.root)!r} is being written by another extraction: "
                    "wait for it to end, or choose another --cache-dir"
                ) from error
        if not cache_json(self.root).exists():
            write_catalog(self.root, {})
        self.feature_sets = read_catalog(self.root)
        sweep(self.root)
        adopt(self.root)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                tidy(self.root)
        finally:
            self._lock.release()

    def resolve(self, wanted: FeatureSet) -> FeatureSet:
        """The set that answers `wanted`: an existing one (also one with more layers), or a new one."""
        found = resolve_set(wanted, self.feature_sets)
        if found.name not in self.feature_sets:
            self.feature_sets[found.name] = found
            write_catalog(self.root, self.feature_sets)
        return found

    def add_clips(self, clips: Sequence[ClipRow]) -> None:
        """Store the clips that are new or whose row changed (a renamed video)."""
        known = ClipTable(self.root).find_all(clips)
        changed = [clip for clip, stored in zip(clips, known, strict=True) if stored != clip]
        if changed:
            number = next_number(clips_dir(self.root))
            write_table(clips_dir(self.root) / f"{number:06d}.parquet", changed, CLIPS_SCHEMA)

    def add_labels(self, labels: Iterable[VideoLabels]) -> int:
        """Store labels that are new, or whose file changed. Returns how many videos that were."""
        known = LabelTable(self.root)
        return write_labels(
            self.root, (item for item in labels if known.label_digest(item.video_digest) != item.label_digest)
        )

    def writer(self, feature_set: FeatureSet) -> SetWriter:
        """A writer that continues what an interrupted run left behind."""
        return SetWriter(self.root, feature_set)

    def record_failures(self, failures: Iterable[Failure], *, videos: Iterable[str]) -> None:
        """Replace what is recorded about `videos` by `failures`; other videos' records stay."""
        path, again = failures_file(self.root), set(videos)
        earlier = read_table(path, Failure, FAILURES_SCHEMA) if path.exists() else []
        kept = [failure for failure in earlier if failure.video not in again]
        records = sorted(
            {*kept, *failures}, key=lambda item: (item.video, item.clip_id, item.stage, item.reason)
        )
        if records or path.exists():
            write_table(path, records, FAILURES_SCHEMA)


def done_clip_ids(writer: SetWriter) -> set[str]:
    """Clips with features in the set, visible or committed to the shard in hand."""
    visible = SetIndex(writer.root, writer.feature_set.name).clip_ids.to_pylist()
    return {*visible, *(row.clip_id for row in writer.unsealed_rows if row.status == "ok")}
