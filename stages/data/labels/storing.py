"""Hand labels into a cache: what is new or changed is read, what is broken is listed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from thinkjepa.cache import Failure, LabelTable, VideoLabels, WriteSession
from thinkjepa.stages.data.labels.label_file import LabelError, LabelFile
from thinkjepa.stages.data.labels.readers import LabelSource, find_labels
from thinkjepa.stages.data.videos import SourceVideo
from thinkjepa.stages.progress import Progress

EXTRA_FRAMES = 2

EXTRA_SHARE = 0.02
"""A label file may have this many frames more than its video, and at least `EXTRA_FRAMES`: recorders stop one
or two frames apart. Beyond that it belongs to another video, or to another frame rate."""


@dataclass(slots=True)
class LabelReport:
    """What became of the label files of a folder."""

    labelled_videos: int = 0
    """With labels in the cache that agree with the file beside the video."""
    added: int = 0
    """Of these, stored now."""
    unlabelled_videos: int = 0
    """Without a label file."""
    failures: list[Failure] = field(default_factory=list)
    """Of the stage `labels`: these videos are trained without their hands, never without their features."""


def store_labels(
    session: WriteSession,
    videos: Iterable[SourceVideo],
    folder: Path,
    *,
    num_frames: Callable[[SourceVideo], int],
    progress: Progress,
) -> LabelReport:
    """Store the labels of videos where the cache lacks them or holds others.

    A video whose label file is broken loses the labels that the cache held of an earlier file: nothing is
    trained on labels that are not there any more. `num_frames` tells how many frames a video has.
    """
    report = LabelReport()
    session.add_labels(_changed(session.root, videos, folder, num_frames, report, progress))
    return report


def check_num_frames(labelled: int, in_video: int) -> None:
    """Raise LabelError where a label file has far more frames than its video."""
    if labelled > in_video + max(EXTRA_FRAMES, int(EXTRA_SHARE * in_video)):
        raise LabelError(
            f"has labels for {labelled} frames, the video has {in_video}: is it of another video, or "
            "of another frame rate? There is one row a frame"
        )


def _changed(
    root: Path,
    videos: Iterable[SourceVideo],
    folder: Path,
    num_frames: Callable[[SourceVideo], int],
    report: LabelReport,
    progress: Progress,
) -> Iterator[VideoLabels]:
    known = LabelTable(root)
    for video in videos:
        stored = known.label_digest(video.digest)
        try:
            found = find_labels(video.path, folder)
            if found is None:
                report.unlabelled_videos += 1
                continue
            digest = found.digest()
            if digest != stored:
                content = read_fitting(found, num_frames(video))
                yield content.of_video(video.name, video_digest=video.digest, label_digest=digest)
                report.added += 1
            report.labelled_videos += 1
        except LabelError as error:
            failure = Failure(video.name, "labels", str(error), video_digest=video.digest)
            report.failures.append(failure)
            progress.failed(failure)
            if stored:
                yield _withdrawn(video.name, video.digest)


def read_fitting(source: LabelSource, num_frames: int) -> LabelFile:
    """The labels of a video with so many frames. Raises LabelError, which names the file."""
    content = source.read()
    try:
        check_num_frames(content.num_frames, num_frames)
    except LabelError as error:
        raise LabelError(f"{source.path.name!r}: {error}") from error
    return content


def _withdrawn(name: str, video_digest: str) -> VideoLabels:
    """Stands for labels that do not hold any more: no frames. No file has its digest, so it is read again."""
    return VideoLabels(
        video_digest=video_digest,
        video=name,
        source="withdrawn",
        label_digest="",
        reference_frame="camera",
        joint_names=(),
        positions_m=np.zeros((0, 0, 3), dtype=np.float32),
        confidences=np.zeros((0, 0), dtype=np.float32),
    )
