"""A folder's hand labels, looked at video by video before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from thinkjepa.cache import Failure, LabelTable, VideoLabels, file_digest
from thinkjepa.stages.data.decoding.client import DecodeError, VideoDecoder
from thinkjepa.stages.data.labels.contract import LabelError
from thinkjepa.stages.data.labels.findings import (
    BINS,
    WRISTS,
    Figures,
    Finding,
    find,
    find_in_folder,
    measure,
    never_known,
)
from thinkjepa.stages.data.labels.readers import LabelFolder, LabelSource, find_labels
from thinkjepa.stages.data.videos import display_name
from thinkjepa.stages.progress import Progress


@dataclass(slots=True)
class VideoCheck:
    """One video: its label file, what was counted in it, what is wrong."""

    video: str
    label_file: str = ""
    video_frames: int = 0
    figures: Figures | None = None
    """None where there are no labels, or they cannot be used."""
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class FolderCheck:
    """All videos of a folder, in the order of their names."""

    folder: str
    videos: Sequence[VideoCheck]
    findings: Sequence[Finding]
    """About all videos together."""

    @property
    def num_errors(self) -> int:
        return self._count("error")

    @property
    def num_warnings(self) -> int:
        return self._count("warning")

    @property
    def usable(self) -> list[VideoCheck]:
        return [item for item in self.videos if item.figures]

    @property
    def never_known(self) -> tuple[str, ...]:
        """Joints that are labelled, with confidence 0 in all videos."""
        return never_known([item.figures for item in self.usable if item.figures])

    @property
    def videos_with_wrist(self) -> dict[str, int]:
        """Number of videos that know each wrist."""
        known = [item.figures.known_joints for item in self.usable if item.figures]
        return {wrist: sum(wrist in names for names in known) for wrist in WRISTS}

    @property
    def confidence_histogram(self) -> list[int]:
        """Over frames and the joints that are known anywhere: samples in `BINS` equal bins from 0 to 1."""
        figures, never = [item.figures for item in self.videos if item.figures], set(self.never_known)
        rows = [(0,) * BINS, *(item.confidence_histogram for item in figures)]
        counts = [int(count) for count in np.sum(rows, axis=0)]
        counts[0] -= sum(item.frames * len(never & set(item.unknown_joints)) for item in figures)
        return counts

    def to_json(self) -> dict[str, Any]:
        kinds = Counter(finding.kind for finding in self._all_findings)
        edges = [round(edge / BINS, 3) for edge in range(BINS + 1)]
        return {
            "folder": self.folder,
            "videos": len(self.videos),
            "usable": len(self.usable),
            "errors": self.num_errors,
            "warnings": self.num_warnings,
            "findings": dict(sorted(kinds.items())),
            "folder_findings": [asdict(finding) for finding in self.findings],
            "never_known": list(self.never_known),
            "videos_with_wrist": self.videos_with_wrist,
            "confidence_histogram": {"edges": edges, "samples": self.confidence_histogram},
            "details": [asdict(item) for item in self.videos],
        }

    def _count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self._all_findings)

    @property
    def _all_findings(self) -> list[Finding]:
        return [*self.findings, *(finding for item in self.videos for finding in item.findings)]


def check_folder(
    files: Sequence[Path],
    folder: Path,
    *,
    decoder: VideoDecoder,
    progress: Progress,
    cached: LabelTable | None = None,
) -> FolderCheck:
    """Check the labels of the videos found under `folder`, also against those of a cache where one is given.

    Raises StageError where no video has a label file.
    """
    labels = LabelFolder(folder, files)
    labels.require_any()
    checks = []
    progress.begin("checking", total=len(files), unit="videos")
    for path in files:
        check = VideoCheck(display_name(path, folder))
        try:
            _check_video(path, folder, labels.find(path), check, decoder, cached)
        except LabelError as error:
            check.findings.append(Finding("error", "broken", str(error)))
            progress.failed(Failure(check.video, "labels", str(error)))
        checks.append(check)
        progress.advance(1)
    figures = [check.figures for check in checks if check.figures]
    return FolderCheck(str(folder), checks, list(find_in_folder(figures)))


def _check_video(
    path: Path,
    folder: Path,
    found: LabelSource | None,
    check: VideoCheck,
    decoder: VideoDecoder,
    cached: LabelTable | None,
) -> None:
    if found is None:
        check.findings.append(
            Finding("warning", "no_labels", "no label file next to the video, and no rows of it in a table")
        )
        if cached is not None:
            check.findings += _against_cache(path, None, cached)
        return
    check.label_file = display_name(found.path, folder)
    try:
        video = decoder.open(path)
    except DecodeError as error:
        raise LabelError(f"the video cannot be opened: {error}") from error
    check.video_frames = len(video.times_s)
    labels = found.read_for(check.video_frames)
    check.figures = measure(labels, video.times_s)
    check.findings += find(labels, check.figures, video_frames=check.video_frames, size_px=video.size_px)
    if cached is not None:
        check.findings += _against_cache(path, found, cached)


def _against_cache(video: Path, found: LabelSource | None, cached: LabelTable) -> list[Finding]:
    try:
        stored, digest = cached.label_digest(file_digest(video)), found.digest() if found else None
    except OSError as error:
        raise LabelError(f"cannot be read: {error.strerror or error}") from error
    if (stored or None) == digest:
        return []
    if not digest:
        message = "the cache holds labels of a file that is gone"
    elif stored:
        message = "the cache holds labels of another file"
    else:
        message = "the cache holds no labels of this video"
    return [Finding("warning", "cache", f"{message}: run thinkjepa-data import")]


def readable_labels(path: Path, folder: Path) -> VideoLabels | None:
    """The labels of a video, None where there are none that can be read."""
    try:
        found = find_labels(path, folder)
        return found.read() if found else None
    except LabelError:
        return None
