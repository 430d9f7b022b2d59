"""Small files that DVC tracks in place of videos and features: a folder's manifest, and a selection of clips.

A manifest changes with a video, a name or a label file. A selection names the feature sets that are read and
the digest of the chosen clips (ids and checksums). The list of clips is in the cache,
`CACHE/selections/<12 hex digits>.json`, so that DVC never copies it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from thinkjepa.cache import file_digest, fingerprint
from thinkjepa.cache.records import SET_NAME
from thinkjepa.stages.data.labels.readers import LabelFolder, is_readable_file
from thinkjepa.stages.data.videos import DigestMemory, display_name, find_videos
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.json_files import Digest, check_record, read_json, read_record, write_json
from thinkjepa.stages.progress import Progress

if TYPE_CHECKING:
    from thinkjepa.cache import FeatureCache

UNREADABLE = "unreadable"
"""Stands for the digest of a file that cannot be read: extraction reports it."""


def folder_manifest(
    folder: Path, *, progress: Progress, memory: DigestMemory, clips_file: Path | None = None
) -> dict[str, Any]:
    """Relative name and content digest of every video, and of the label files of these videos, if any.

    The digest of the user's table of clips is among them. Files that `memory` knows are not read. Raises
    StageError where there is no video, or no such table.
    """
    files = find_videos(folder)
    progress.begin("reading", total=len(files), unit="videos")
    root, label_folder = folder.resolve(), LabelFolder(folder, files)
    videos: dict[str, str] = {}
    labels: dict[str, str] = {}
    for path in files:
        videos[display_name(path, folder)] = _digest(path, root, memory)
        for found in label_folder.paths[path]:
            labels[display_name(found, folder)] = _digest(found, root, memory)
        progress.advance(1)
    manifest: dict[str, Any] = {"schema": "thinkjepa.clips.v1", "videos": videos}
    if clips_file:
        manifest["clips_file"] = _table_digest(clips_file)
    return {**manifest, "labels": labels} if labels else manifest


def _table_digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise StageError(f"the table of clips {str(path)!r} cannot be read: {error.strerror}") from error


def _digest(path: Path, root: Path, memory: DigestMemory) -> str:
    try:
        return memory.digest(path, file_digest) if is_readable_file(path, root) else UNREADABLE
    except OSError:
        return UNREADABLE


def table_manifest(table: Path | None) -> dict[str, Any]:
    """The content digest of the table that an oracle reads, empty where there is none."""
    try:
        digest = file_digest(table) if table else ""
    except OSError:
        digest = UNREADABLE
    return {"schema": "thinkjepa.tables.v1", "oracle_table": digest}


SELECTION_SCHEMA = "thinkjepa.selection.v1"

SetName = Annotated[str, Field(pattern=f"^({SET_NAME.pattern})?$")]


@dataclass(frozen=True, slots=True)
class Selection:
    """Chosen sets and clips, without times and paths: the same features give the same selection."""

    schema: str
    thinker: SetName
    """Empty where no thinker is read."""
    encoder: SetName
    num_clips: int
    clips: Digest
    """Digest of the clips' ids and the checksums of their features in the sets that are read."""
    names: Digest
    """Digest of the videos' contents and relative names, from which the groups of a split follow, and of
    the groups and partitions that the user's table of clips names."""
    labels: str = ""
    """Digest of the label files that the chosen clips' videos have hand labels from; empty where none has."""
    history: str = ""
    """Digest of the chosen clips' history, which only some runs read; empty where it is not kept."""


@dataclass(frozen=True, slots=True)
class _ClipList:
    """Content of a selection's list in the cache."""

    clip_ids: list[str]


def make_selection(
    cache_dir: Path, *, thinker_set: str, encoder_set: str, clip_ids: Collection[str], history_set: str = ""
) -> Selection:
    """Describe the chosen clips that are complete in both sets, and keep their list in the cache.

    `history_set` is empty where the encoder's features of the thinker's frames are not kept.
    """
    selection = _selection(cache_dir, clip_ids, encoder_set=encoder_set, thinker_set=thinker_set)
    if not history_set:
        return selection
    from thinkjepa.cache import FeatureCache

    ids = selected_clip_ids(cache_dir, selection)
    checksums: list[str] = FeatureCache.open(cache_dir).index(history_set).values_of(ids, "checksum")
    return replace(selection, history=fingerprint([history_set, *checksums]))


def without_thinker(cache_dir: Path, selection: Selection) -> Selection:
    """The same clips for a reader of the encoder's features alone; equal for all thinkers that have them."""
    clip_ids = selected_clip_ids(cache_dir, selection)
    return _selection(cache_dir, clip_ids, encoder_set=selection.encoder)


def _selection(
    cache_dir: Path, clip_ids: Collection[str], *, encoder_set: str, thinker_set: str | None = None
) -> Selection:
    from thinkjepa.cache import FeatureCache  # torch comes with it, which a manifest does not need

    cache = FeatureCache.open(cache_dir)
    read = [name for name in (thinker_set, encoder_set) if name]
    chosen = cache.select(*read).only(clip_ids)
    ids = chosen.clip_ids.to_pylist()
    checksums = [cache.index(name).values_of(ids, "checksum") for name in read]
    videos = set(zip(chosen.values("video_digest"), chosen.values("video"), strict=True))
    groups, partitions = chosen.values("group"), chosen.values("partition")
    named = [item for item in zip(ids, groups, partitions, strict=True) if any(item[1:])]
    selection = Selection(
        schema=SELECTION_SCHEMA,
        thinker=thinker_set or "",
        encoder=encoder_set,
        num_clips=len(chosen),
        clips=fingerprint(list(zip(ids, *checksums, strict=True))),
        names=fingerprint([sorted(videos), named] if named else sorted(videos)),
        labels=labels_digest(cache, {digest for digest, _ in videos}),
    )
    write_json(_list_file(cache_dir, selection), {"clip_ids": ids})
    return selection


def write_selection(path: Path, selection: Selection) -> None:
    """Write a selection. A file without labels or history has no key for them, as before there were any."""
    record = asdict(selection)
    write_json(
        path, {name: value for name, value in record.items() if name not in ("labels", "history") or value}
    )


def read_selection(path: Path) -> Selection:
    """The selection in a file. Raises StageError where the file is none."""
    record = read_json(path)
    if record.get("schema") != SELECTION_SCHEMA or not set(record) <= {
        item.name for item in fields(Selection)
    }:
        raise StageError(
            f"{str(path)!r} is no selection of clips: the extract step of `dvc repro` writes one"
        )
    check_record(record, Selection, path)
    return Selection(**record)


def selected_clip_ids(cache_dir: Path, selection: Selection) -> list[str]:
    """The chosen clips, sorted. Raises StageError where the cache does not hold the list."""
    path = _list_file(cache_dir, selection)
    if not path.is_file():
        raise StageError(
            f"cache {str(cache_dir)!r} does not hold this selection of clips: run the extraction again"
        )
    return list(read_record(path, _ClipList)["clip_ids"])


def labels_digest(cache: FeatureCache, video_digests: Collection[str]) -> str:
    """Digest of the hand labels of some videos; empty where none of them has any."""
    digests = {video: cache.labels.label_digest(video) for video in video_digests}
    labelled = sorted((video, digest) for video, digest in digests.items() if digest)
    return fingerprint(labelled) if labelled else ""


def _list_file(cache_dir: Path, selection: Selection) -> Path:
    return cache_dir / "selections" / f"{selection.clips[:12]}.json"
