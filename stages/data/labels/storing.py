"""Hand labels are stored in a cache: new and changed ones are read, broken ones are listed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from thinkjepa.cache import Failure, FeatureCache, LabelTable, VideoLabels, WriteSession
from thinkjepa.stages.data.decoding.client import DecodeError, VideoDecoder
from thinkjepa.stages.data.labels.contract import LabelError
from thinkjepa.stages.data.labels.findings import MAX_EXTENT_M, describe_far, extent
from thinkjepa.stages.data.labels.readers import LabelFolder
from thinkjepa.stages.data.videos import SourceVideo, display_name, find_videos, identify
from thinkjepa.stages.progress import Progress


@dataclass(slots=True)
class LabelReport:
    """Counts of a folder's label files by what became of them."""

    labelled_videos: int = 0
    """Videos with labels in the cache that agree with their file."""
    added: int = 0
    """Labelled videos whose labels were stored now."""
    unlabelled_videos: int = 0
    """Videos without a label file."""
    withdrawn_videos: int = 0
    """Unlabelled videos that lost their labels in the cache now, because their file is gone."""
    kept_videos: int = 0
    """Unlabelled videos of a folder without any labels, whose labels in the cache are of another folder."""
    failures: list[Failure] = field(default_factory=list)
    """Failures of the stage `labels`: these videos keep their features and are trained without hands."""


def store_labels(
    session: WriteSession,
    videos: Iterable[SourceVideo],
    labels: LabelFolder,
    *,
    num_frames: Callable[[SourceVideo], int],
    progress: Progress,
) -> LabelReport:
    """Store the labels of videos where the cache lacks them or holds others.

    A video whose label file is broken or gone loses the labels that the cache held of an earlier file, so
    that nothing is trained on labels that are gone. Videos of a folder without any label file keep theirs,
    which were imported from elsewhere. `num_frames` gives the number of frames of a video and may raise
    LabelError.
    """
    report = LabelReport()
    session.add_labels(_changed(LabelTable(session.root), videos, labels, num_frames, report, progress))
    return report


def _changed(
    known: LabelTable,
    videos: Iterable[SourceVideo],
    labels: LabelFolder,
    num_frames: Callable[[SourceVideo], int],
    report: LabelReport,
    progress: Progress,
) -> Iterator[VideoLabels]:
    far: list[str] = []  # videos whose joints lie too far apart
    gone: list[str] = []  # videos whose labels were withdrawn
    for video in videos:
        stored = known.label_digest(video.digest)
        try:
            found = labels.find(video.path)
            if found is None:
                report.unlabelled_videos += 1
                if stored and labels.has_any:
                    gone.append(video.name)
                    yield _withdrawn(video)
                report.kept_videos += bool(stored) and not labels.has_any
                continue
            if found.digest() != stored:
                read = found.labels_of(video, num_frames(video))
                if extent(read.positions_m, read.confidences) > MAX_EXTENT_M:
                    far.append(video.name)
                yield read
                report.added += 1
            report.labelled_videos += 1
        except LabelError as error:
            failure = Failure(video.name, "labels", str(error), video_digest=video.digest)
            report.failures.append(failure)
            progress.failed(failure)
            if stored:
                yield _withdrawn(video)
    report.withdrawn_videos = len(gone)
    if gone:
        progress.note(f"hand labels withdrawn, their file is gone: {_counted(gone)}")
    if report.kept_videos:
        progress.note(
            f"the folder has no hand labels: {report.kept_videos:,} of its videos keep those that the cache "
            "holds from elsewhere"
        )
    if warning := describe_far(far):
        progress.note(warning)


def _counted(videos: Sequence[str]) -> str:
    """The first of some videos, and the number of others."""
    return f"{videos[0]!r}" + (f" and {len(videos) - 1:,} other videos" if len(videos) > 1 else "")


def _withdrawn(video: SourceVideo) -> VideoLabels:
    """Labels of no frames for a video whose labels do not hold any more.

    No file has their digest, so a file is read again.
    """
    return VideoLabels(
        source="withdrawn",
        reference_frame="camera",
        joint_names=(),
        positions_m=np.zeros((0, 0, 3), dtype=np.float32),
        confidences=np.zeros((0, 0), dtype=np.float32),
        video=video.name,
        video_digest=video.digest,
    )


def import_labels(videos: Path, cache_dir: Path, *, decoder: VideoDecoder, progress: Progress) -> LabelReport:
    """Store the labels of a folder's videos where they are new or changed.

    Raises StageError where there are none, CacheError where there is no cache.
    """
    FeatureCache.open(cache_dir)
    files = find_videos(videos)
    labels = LabelFolder(videos, files)
    labels.require_any()
    progress.begin("importing", total=len(files), unit="videos")
    unreadable: list[Failure] = []
    with WriteSession(cache_dir) as session:
        report = store_labels(
            session,
            _identified(files, videos, unreadable, progress),
            labels,
            num_frames=lambda video: _num_frames(decoder, video.path),
            progress=progress,
        )
        report.failures += unreadable
        names = {display_name(path, videos) for path in files}
        before = FeatureCache.open(cache_dir).failures
        others = [item for item in before if item.video in names and item.stage != "labels"]
        session.record_failures([*others, *report.failures], videos=names)
    return report


def _identified(
    files: Sequence[Path], folder: Path, unreadable: list[Failure], progress: Progress
) -> Iterator[SourceVideo]:
    """Each content once, by the first of its names."""
    seen: set[str] = set()
    for path in files:
        try:
            video = identify(path, folder=folder)
        except OSError as error:
            reason = f"the video cannot be read: {error.strerror or error}"
            unreadable.append(Failure(display_name(path, folder), "labels", reason))
            progress.failed(unreadable[-1])
        else:
            if video.digest not in seen:
                seen.add(video.digest)
                yield video
        progress.advance(1)


def _num_frames(decoder: VideoDecoder, path: Path) -> int:
    try:
        return len(decoder.open(path).times_s)
    except DecodeError as error:
        raise LabelError(f"the video cannot be opened: {error}") from error
