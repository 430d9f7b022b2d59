"""Labels into a cache that has features already: no model is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from thinkjepa.cache import Failure, FeatureCache, WriteSession
from thinkjepa.stages.data.decode_process import DecodeError, VideoDecoder
from thinkjepa.stages.data.labels.folder_check import require_labels
from thinkjepa.stages.data.labels.label_file import LabelError
from thinkjepa.stages.data.labels.storing import LabelReport, store_labels
from thinkjepa.stages.data.videos import display_name, find_videos, identify
from thinkjepa.stages.progress import Progress


def import_labels(videos: Path, cache_dir: Path, *, decoder: VideoDecoder, progress: Progress) -> LabelReport:
    """Store the labels beside the videos of a folder where they are new or changed.

    Raises StageError where there are none, CacheError where there is no cache.
    """
    cache = FeatureCache.open(cache_dir)
    files = find_videos(videos)
    require_labels(files, videos)
    progress.begin("importing", total=len(files), unit="videos")
    unreadable: list[Failure] = []
    with WriteSession(cache_dir) as session:
        report = store_labels(
            session,
            _identified(files, videos, unreadable, progress),
            videos,
            num_frames=lambda digest, path: _num_frames(decoder, path),
            progress=progress,
        )
        report.failures += unreadable
        names = {display_name(path, videos) for path in files}
        others = [item for item in cache.failures if item.video in names and item.stage != "labels"]
        session.record_failures([*others, *report.failures], videos=names)
    return report


def _identified(
    files: Sequence[Path], folder: Path, unreadable: list[Failure], progress: Progress
) -> Iterator[tuple[str, Path]]:
    """Each content once, by the first of its names."""
    seen: set[str] = set()
    for path in files:
        try:
            digest = identify(path, folder=folder).digest
        except OSError as error:
            reason = f"the video cannot be read: {error.strerror or error}"
            unreadable.append(Failure(display_name(path, folder), "labels", reason))
            progress.failed(unreadable[-1])
        else:
            if digest not in seen:
                seen.add(digest)
                yield digest, path
        progress.advance(1)


def _num_frames(decoder: VideoDecoder, path: Path) -> int:
    try:
        return len(decoder.open(path).times_s)
    except DecodeError as error:
        raise LabelError(f"the video cannot be opened: {error}") from error
