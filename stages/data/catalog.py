"""From a folder of videos to planned clips: identify, open, plan; what fails is recorded, not fatal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from thinkjepa.cache import ClipRow, Failure
from thinkjepa.stages.data.clips import ClipSettings, PlanError, has_clip, plan_clips
from thinkjepa.stages.data.decode_process import DecodeError, VideoDecoder, VideoInfo
from thinkjepa.stages.data.rates import FrameRate, measured_rate
from thinkjepa.stages.data.repeated_frames import RepeatedFrames, planned_repeats
from thinkjepa.stages.data.videos import FileSignature, SourceVideo, display_name, identify
from thinkjepa.stages.progress import Progress

UNKNOWN_FPS = 30.0
"""Where no video opens: nothing is made with it."""


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
    settings: ClipSettings = field(default_factory=ClipSettings)
    """How the clips were cut: `dense_fps` is a number here, also where it was asked to be found."""

    @property
    def fps(self) -> float | None:
        """Rate of the dense windows; None where the preset cuts by index."""
        return None if self.settings.preset == "release" else self.settings.fps

    @property
    def repeated_frames(self) -> RepeatedFrames:
        return planned_repeats(self.clips)


def plan_folder(
    files: Sequence[Path],
    folder: Path,
    settings: ClipSettings,
    *,
    decoder: VideoDecoder,
    progress: Progress,
    failure_limit: int | None = None,
) -> PlannedFolder:
    """Plan the video files found under `folder`, as long as no more than `failure_limit` of them fail.

    All are opened before the first clip is cut: the rate of the dense windows may depend on all of them.
    """
    planned = PlannedFolder(num_videos=len(files), names=[])
    opened: dict[str, tuple[SourceVideo, VideoInfo]] = {}
    progress.begin("planning", total=len(files), unit="videos")
    for path in files:
        if failure_limit is not None and len(planned.failures) > failure_limit:
            break
        planned.names.append(display_name(path, folder))
        video = _identified(path, folder, planned, progress)
        if video and video.digest in opened:
            planned.repeats.append((video.name, opened[video.digest][0].name))
        elif video and (info := _opened(video, decoder, planned, progress)):
            opened[video.digest] = (video, info)
        progress.advance(1)
    planned.settings = _with_rate(settings, list(opened.values()), progress)
    for video, info in opened.values():
        _plan_video(video, info, planned, progress)
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


def _opened(
    video: SourceVideo, decoder: VideoDecoder, planned: PlannedFolder, progress: Progress
) -> VideoInfo | None:
    try:
        return decoder.open(video.path)
    except DecodeError as error:
        failure = Failure(video.name, "open", str(error), video_digest=video.digest)
        record([failure], planned.failures, progress)
        return None


def _plan_video(video: SourceVideo, info: VideoInfo, planned: PlannedFolder, progress: Progress) -> None:
    try:
        clips = plan_clips(video, info, planned.settings)
    except PlanError as error:
        failure = Failure(video.name, "plan", str(error), video_digest=video.digest)
        record([failure], planned.failures, progress)
        return
    planned.clips.extend(clips)
    planned.paths[video.digest] = video.path
    planned.signatures[video.digest] = video.signature
    planned.frame_sizes[video.digest] = (info.width_px, info.height_px)
    planned.num_frames[video.digest] = len(info.times_s)
    planned.duration_s += float(info.times_s[-1])


def _with_rate(
    settings: ClipSettings, opened: Sequence[tuple[SourceVideo, VideoInfo]], progress: Progress
) -> ClipSettings:
    """The settings with a number for the rate, which is told where it had to be found.

    The slowest rate that a video has, of those that give a clip at their own: a scrap of two frames a second
    apart would slow down all.
    """
    if settings.dense_fps != "auto" or settings.preset == "release":
        return settings
    rates = {video.name: rate for video, info in opened if (rate := measured_rate(info.times_s))}
    lasting = {
        video.name: rates[video.name]
        for video, info in opened
        if video.name in rates and has_clip(info.times_s, replace(settings, dense_fps=rates[video.name].fps))
    }
    if not rates:
        return replace(settings, dense_fps=UNKNOWN_FPS)
    chosen = lasting or rates
    settled = replace(settings, dense_fps=min(rate.fps for rate in chosen.values()))
    short = [name for name in rates if rates[name].fps < settled.fps]
    progress.note(_described_rates(chosen) + _described_short(short, rates, settings))
    return settled


def _described_rates(rates: Mapping[str, FrameRate]) -> str:
    """What `auto` has come to, and why."""
    slowest = min(rates, key=lambda name: rates[name].fps)
    fps, fastest = rates[slowest].fps, max(rate.fps for rate in rates.values())
    faster = sum(rate.fps > fps for rate in rates.values())
    uneven = "" if rates[slowest].is_steady else ", by the median gap of its uneven frames"
    if not faster:
        return f"--dense-fps auto: {fps:g} frames a second, the rate of the videos{uneven}"
    return (
        f"--dense-fps auto: {fps:g} frames a second, the rate of {slowest!r}{uneven}; {faster} of "
        f"{len(rates)} videos are faster, up to {fastest:g}, and give only some of their frames: a number "
        "sets another rate, frames of slower videos repeat then"
    )


def _described_short(names: Sequence[str], rates: Mapping[str, FrameRate], settings: ClipSettings) -> str:
    """Which slower videos `auto` leaves out of account; empty where there are none."""
    if not names:
        return ""
    slowest = min(names, key=lambda name: rates[name].fps)
    fps = rates[slowest].fps
    others = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
    return (
        f"; {slowest!r}{others} slower but too short for a clip at that rate: at {fps:g} it takes "
        f"{replace(settings, dense_fps=fps).clip_span_s:.1f} s, with fewer --observed-frames and "
        "--future-frames less"
    )
