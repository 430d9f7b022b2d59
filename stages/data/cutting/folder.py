"""The plan of a folder of videos: each identified and opened once, and then cut into clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from thinkjepa.cache import Failure
from thinkjepa.stages.data.cutting.reading import ClipFile, ClipRequest, read_clip_file
from thinkjepa.stages.data.decoding.client import DecodeError, VideoDecoder, VideoInfo
from thinkjepa.stages.data.plan import (
    ClipSettings,
    PlannedFolder,
    PlannedVideo,
    Requests,
    has_clip,
    plan_clips,
)
from thinkjepa.stages.data.rates import described_lost, described_rates, described_short, measured_rate
from thinkjepa.stages.data.short_videos import ShortVideo
from thinkjepa.stages.data.videos import SourceVideo, display_name, find_videos, identify
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.progress import Progress

UNKNOWN_FPS = 30.0
"""Where no video opens: nothing is made with it."""


def wanted_videos(
    folder: Path, clips_file: Path | None, settings: ClipSettings
) -> tuple[list[Path], ClipFile | None]:
    """The videos under a folder, all or those that the user's table names, and that table.

    Raises StageError for a table that cannot be read, or names other videos.
    """
    if clips_file is None:
        return find_videos(folder), None
    if settings.preset == "release":
        raise StageError("--clips with --preset release, which splits at half of a video: leave one out")
    table = read_clip_file(clips_file)
    by_name = {display_name(path, folder): path for path in find_videos(folder)}
    table.check_videos(by_name, folder)
    return [path for name, path in by_name.items() if name in table.by_video], table


def plan_folder(
    files: Sequence[Path],
    folder: Path,
    settings: ClipSettings,
    *,
    decoder: VideoDecoder,
    progress: Progress,
    failure_limit: int | None = None,
    table: ClipFile | None = None,
) -> PlannedFolder:
    """Plan the video files found under `folder`, as long as no more than `failure_limit` of them fail.

    All are opened before the first clip is cut: the rate of the dense windows may depend on all of them. A
    `table` names all of these files, and says which clips are cut. Raises StageError for a wrong row.
    """
    planned = PlannedFolder(num_videos=len(files), names=[])
    opened: dict[str, PlannedVideo] = {}
    requests: dict[str, list[ClipRequest]] = {}
    progress.begin("planning", total=len(files), unit="videos")
    for path in files:
        if failure_limit is not None and len(planned.failures) > failure_limit:
            break
        planned.names.append(display_name(path, folder))
        video = _identified(path, folder, planned, progress)
        if video and table:
            requests.setdefault(video.digest, []).extend(table.by_video[video.name])
        if video and video.digest in opened:
            planned.repeats.append((video.name, opened[video.digest].source.name))
        elif video and (info := _opened(video, decoder, planned, progress)):
            opened[video.digest] = PlannedVideo(video, info)
        progress.advance(1)
    planned.settings = _with_rate(settings, list(opened.values()), progress, requests if table else {})
    for digest, found in opened.items():
        _plan_video(found, planned, requests[digest] if table else None)
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


def _plan_video(video: PlannedVideo, planned: PlannedFolder, requests: Requests) -> None:
    name, digest, settings = video.source.name, video.source.digest, planned.settings
    clips, short = plan_clips(video.source, video.info, settings, requests)
    planned.too_short += short
    if clips:
        planned.videos[digest] = replace(video, clips=clips)
    elif not short:
        duration_s = float(video.info.times_s[-1])
        planned.too_short.append(ShortVideo(name, digest, duration_s, settings.needed))


def _with_rate(
    settings: ClipSettings,
    opened: Sequence[PlannedVideo],
    progress: Progress,
    requests: Mapping[str, Sequence[ClipRequest]],
) -> ClipSettings:
    """The settings with a number for the rate, which is told where it had to be found.

    The slowest rate that a video has, of those that give a clip at their own: a scrap of two frames a second
    apart would slow down all.
    """
    if settings.dense_fps != "auto" or settings.preset == "release":
        return settings
    times_s = {video.source.name: video.info.times_s for video in opened}
    asked = {video.source.name: requests.get(video.source.digest) for video in opened}
    rates = {name: rate for name, times in times_s.items() if (rate := measured_rate(times))}
    lasting = {
        name: rate
        for name, rate in rates.items()
        if has_clip(times_s[name], replace(settings, dense_fps=rate.fps), asked[name])
    }
    if not rates:
        return replace(settings, dense_fps=UNKNOWN_FPS)
    chosen = lasting or rates
    settled = replace(settings, dense_fps=min(rate.fps for rate in chosen.values()))
    short = [name for name in rates if rates[name].fps < settled.fps]
    lost = [name for name in lasting if not has_clip(times_s[name], settled, asked[name])]
    slow = [name for name in chosen if chosen[name].fps == settled.fps]
    progress.note(
        described_rates(chosen)
        + described_short(short, rates, clip_span_s=lambda fps: replace(settings, dense_fps=fps).clip_span_s)
        + described_lost(lost, slow, clip_span_s=settled.clip_span_s)
    )
    return settled
