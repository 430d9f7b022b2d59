"""From a folder of videos to planned clips: identify, open, plan; what fails is recorded, not fatal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from thinkjepa.cache import ClipRow, Failure, FailureStage
from thinkjepa.stages.data.clips import ClipSettings, PlanError, plan_clips
from thinkjepa.stages.data.decode_process import DecodeError, VideoDecoder
from thinkjepa.stages.data.videos import FileSignature, SourceVideo, display_name, identify
from thinkjepa.stages.progress import Progress


@dataclass(slots=True)
class PlannedFolder:
    """The clips of a folder, in the order of the videos' names and of their splits."""

    num_videos: int
    names: list[str]
    """Every video that was looked at, with clips or without."""
    clips: list[ClipRow] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    repeats: list[tuple[str, str]] = field(default_factory=list)
    """Videos that hold the same content as an earlier one, which stands for both."""
    paths: dict[str, Path] = field(default_factory=dict)
    """Where each video digest is read from."""
    frame_sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Width and height in pixels by video digest."""
    num_frames: dict[str, int] = field(default_factory=dict)
    """Frames by video digest."""
    signatures: dict[str, FileSignature] = field(default_factory=dict)
    """What each file was when its digest was taken."""
    duration_s: float = 0.0


def plan_folder(
    files: Sequence[Path],
    folder: Path,
    settings: ClipSettings,
    *,
    decoder: VideoDecoder,
    progress: Progress,
    failure_limit: int | None = None,
) -> PlannedFolder:
    """Plan the video files found under `folder`, as long as no more than `failure_limit` of them fail."""
    planned = PlannedFolder(num_videos=len(files), names=[])
    names: dict[str, str] = {}
    progress.begin("planning", total=len(files), unit="videos")
    for path in files:
        if failure_limit is not None and len(planned.failures) > failure_limit:
            break
        planned.names.append(display_name(path, folder))
        video = _identified(path, folder, planned, progress)
        if video and video.digest in names:
            planned.repeats.append((video.name, names[video.digest]))
        elif video:
            names[video.digest] = video.name
            _plan_video(video, settings, decoder, planned, progress)
        progress.advance(1)
    return planned


def record(failures: Sequence[Failure], planned: list[Failure], progress: Progress) -> None:
    """Keep failures and show them as they happen."""
    for failure in failures:
        planned.append(failure)
        progress.failed(failure)


def _identified(path: Path, folder: Path, planned: PlannedFolder, progress: Progress) -> SourceVideo | None:
    try:
        return identify(path, folder=folder)
    except OSError as error:
        name = display_name(path, folder)
        reason = f"cannot be read: {error.strerror or error}"
        record([Failure(name, "open", reason)], planned.failures, progress)
        return None


def _plan_video(
    video: SourceVideo,
    settings: ClipSettings,
    decoder: VideoDecoder,
    planned: PlannedFolder,
    progress: Progress,
) -> None:
    try:
        info = decoder.open(video.path)
        clips = plan_clips(video, info, settings)
    except (DecodeError, PlanError) as error:
        stage: FailureStage = "plan" if isinstance(error, PlanError) else "open"
        failure = Failure(video.name, stage, str(error), video_digest=video.digest)
        record([failure], planned.failures, progress)
        return
    planned.clips.extend(clips)
    planned.paths[video.digest] = video.path
    planned.signatures[video.digest] = video.signature
    planned.frame_sizes[video.digest] = (info.width_px, info.height_px)
    planned.num_frames[video.digest] = len(info.times_s)
    planned.duration_s += float(info.times_s[-1])
