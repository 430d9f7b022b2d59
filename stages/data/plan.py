"""Planning clips: from a video's frame times and the settings to clip rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic.dataclasses import dataclass as pydantic_dataclass

from thinkjepa.cache import ClipRow, Failure, fingerprint
from thinkjepa.stages.data.decoding.client import DecodeError, VideoDecoder, VideoInfo
from thinkjepa.stages.data.history import Histories, planned_histories
from thinkjepa.stages.data.rates import described_lost, described_rates, described_short, measured_rate
from thinkjepa.stages.data.repeated_frames import RepeatedFrames, planned_repeats
from thinkjepa.stages.data.sampling import (
    SPACED,
    ClipFrames,
    Times,
    dual_clip,
    release_clip,
    window_splits,
)
from thinkjepa.stages.data.short_videos import ShortVideo
from thinkjepa.stages.data.videos import SourceVideo, display_name, identify
from thinkjepa.stages.progress import Progress
from thinkjepa.stages.settings import Settings, setting

EVEN = "an even number of frames, 2 or more"

RELEASE_NEEDS = 2
"""Frames of a video that `--preset release` can split."""


@pydantic_dataclass(frozen=True)
class ClipSettings(Settings):
    """Settings of clips: their cut from videos, and the frames for the two frozen models."""

    PANEL: ClassVar[str] = "Clips"

    preset: Literal["dual", "release"] = setting(
        "dual",
        "dual: thinker over the whole history, encoder over a dense window; "
        "release: as the published code, split at half the frames, the thinker sees the observed frames.",
    )
    thinker_frames: int = setting(
        16,
        "Frames for the thinker, spread over everything before the split.",
        ge=2,
        multiple_of=2,
        allowed=EVEN,
    )
    observed_frames: int = setting(
        32,
        "Frames of the observed window, a multiple of the encoder's tubelet.",
        ge=2,
        multiple_of=2,
        allowed=EVEN,
    )
    future_frames: int = setting(
        32,
        "Frames of a future window, a multiple of the encoder's tubelet.",
        ge=2,
        multiple_of=2,
        allowed=EVEN,
    )
    future_windows: int = setting(
        1, "Future windows one after the other; more than 1 for long rollouts.", ge=1
    )
    dense_fps: float | Literal["auto"] = setting(
        "auto",
        "Rate of the observed and future windows, frames per second. auto: the videos' own, the slowest "
        "one's where they differ; above a video's own rate frames repeat.",
    )
    stride_s: float = setting(2.0, "Seconds between the splits of a long video.", gt=0, allow_inf_nan=False)
    min_history_s: float = setting(
        0.0,
        "Least seconds of video before a split; 0: the observed window, at the first split of a video all "
        "that the thinker sees.",
        ge=0,
        allow_inf_nan=False,
    )

    def __post_init__(self) -> None:
        if self.preset == "release" and self.future_windows != 1:
            raise ValueError("--preset release has one future window: leave --future-windows at 1")
        if self.preset == "release" and self.min_history_s:
            raise ValueError("--preset release splits at half of a video: leave --min-history-s at 0")
        if self.dense_fps != "auto" and not (np.isfinite(self.dense_fps) and self.dense_fps > 0):
            raise ValueError(f"--dense-fps {self.dense_fps}: give a number above 0, or auto")

    @property
    def fps(self) -> float:
        """`dense_fps` as a number: `auto` has become one when clips are planned."""
        assert self.dense_fps != "auto", "the rate is known when the videos are: PlannedFolder.settings"
        return float(self.dense_fps)

    @property
    def thinker_sampling(self) -> dict[str, Any]:
        """Everything that determines the thinker's frames, given the split; with its fingerprint."""
        if self.preset == "release":
            return _named({"rule": "release", "frames": self.observed_frames})
        return _named({"rule": "history", "frames": self.thinker_frames})

    @property
    def dense_sampling(self) -> dict[str, Any]:
        """Everything that determines the encoder's frames, given the split; with its fingerprint."""
        numbers = {"observed": self.observed_frames, "future": self.future_frames}
        if self.preset == "release":
            return _named({"rule": "release", **numbers})
        return _named({"rule": SPACED, **numbers, "windows": self.future_windows, "fps": self.fps})

    @property
    def observed_span_s(self) -> float:
        return (self.observed_frames - 1) / self.fps

    @property
    def future_span_s(self) -> float:
        return (self.future_windows * self.future_frames - 1) / self.fps

    @property
    def clip_span_s(self) -> float:
        """Seconds that a video has to last for one clip.

        Below the video's own rate each future window may take up to one more of its frames.
        """
        return max(self.observed_span_s, self.min_history_s) + 1 / self.fps + self.future_span_s

    @property
    def needed(self) -> str:
        """The length that a video needs for one clip, in words."""
        if self.preset == "release":
            return f"{RELEASE_NEEDS} frames"
        num_future = self.future_windows * self.future_frames
        history = f", a history of {self.min_history_s:g} s" if self.min_history_s else ""
        return (
            f"{self.clip_span_s:.2f} s ({self.observed_frames} + {num_future} frames at {self.fps:g} fps"
            f"{history})"
        )


def plan_clips(video: SourceVideo, info: VideoInfo, settings: ClipSettings) -> list[ClipRow]:
    """The clips of one video in the order of their splits, none where it is too short for one."""
    return [_row(video, info.times_s, frames, settings) for frames in _choose(info.times_s, settings)]


def has_clip(times_s: Times, settings: ClipSettings) -> bool:
    """True if a video with frames at these times gives a clip."""
    return bool(_splits(times_s, settings))


def _choose(times_s: Times, settings: ClipSettings) -> list[ClipFrames]:
    if settings.preset == "release":
        if len(times_s) < RELEASE_NEEDS:
            return []
        return [
            release_clip(
                len(times_s), num_observed=settings.observed_frames, num_future=settings.future_frames
            )
        ]
    return [
        dual_clip(
            times_s,
            split,
            thinker_frames=settings.thinker_frames,
            num_observed=settings.observed_frames,
            num_future=settings.future_frames,
            num_windows=settings.future_windows,
            fps=settings.fps,
        )
        for split in _splits(times_s, settings)
    ]


def _splits(times_s: Times, settings: ClipSettings) -> list[int]:
    return window_splits(
        times_s,
        num_observed=settings.observed_frames,
        num_future=settings.future_frames,
        num_windows=settings.future_windows,
        fps=settings.fps,
        stride_s=settings.stride_s,
        min_history_s=settings.min_history_s,
    )


def _row(video: SourceVideo, times_s: Times, frames: ClipFrames, settings: ClipSettings) -> ClipRow:
    return ClipRow(
        clip_id=f"{video.video_id}@{frames.split_frame}",
        video=video.name,
        video_digest=video.digest,
        thinker_sampling=settings.thinker_sampling["fingerprint"],
        dense_sampling=settings.dense_sampling["fingerprint"],
        split_frame=frames.split_frame,
        split_time_s=float(times_s[frames.split_frame]),
        thinker_frames=tuple(frames.thinker.tolist()),
        thinker_times_s=tuple(times_s[frames.thinker].tolist()),
        observed_frames=tuple(frames.observed.tolist()),
        observed_times_s=tuple(times_s[frames.observed].tolist()),
        future_frames=tuple(tuple(window) for window in frames.future.tolist()),
        future_times_s=tuple(tuple(window) for window in times_s[frames.future].tolist()),
    )


def _named(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "fingerprint": fingerprint(record)[:12]}


def with_windows(sampling: Mapping[str, Any], windows: int) -> dict[str, Any]:
    """A record of `dense_sampling` with another number of future windows.

    Each window follows the one before it, so that the first of many are those of few, but for UNSPACED.
    """
    record = {name: value for name, value in sampling.items() if name != "fingerprint"}
    return _named({**record, "windows": windows})


UNKNOWN_FPS = 30.0
"""Where no video opens: nothing is made with it."""


@dataclass(frozen=True, slots=True)
class PlannedVideo:
    """A video as it was identified and opened, with its clips in the order of their splits."""

    source: SourceVideo
    info: VideoInfo
    clips: Sequence[ClipRow] = ()

    def for_worker(self) -> PlannedVideo:
        """The video as another process decodes it: an absolute path, no frame times and no clips."""
        return PlannedVideo(
            source=replace(self.source, path=self.source.path.absolute()),
            info=replace(self.info, times_s=self.info.times_s[:0]),
        )


@dataclass(slots=True)
class PlannedFolder:
    """The videos of a folder that give clips, in the order of their names, and those that do not."""

    num_videos: int
    names: list[str]
    """Every video that was tried, with clips or without."""
    videos: dict[str, PlannedVideo] = field(default_factory=dict)
    """Videos with clips, by content digest."""
    failures: list[Failure] = field(default_factory=list)
    too_short: list[ShortVideo] = field(default_factory=list)
    """Videos that open and have no room for a clip: no failures."""
    repeats: list[tuple[str, str]] = field(default_factory=list)
    """Videos with the content of an earlier one, which stands for both."""
    settings: ClipSettings = field(default_factory=ClipSettings)
    """The settings that cut the clips. `dense_fps` is a number here, also where `auto` was given."""

    @property
    def clips(self) -> list[ClipRow]:
        """All clips, in the order of the videos and of their splits."""
        return [clip for video in self.videos.values() for clip in video.clips]

    @property
    def duration_s(self) -> float:
        """Seconds of all videos with clips."""
        return sum(float(video.info.times_s[-1]) for video in self.videos.values())

    @property
    def fps(self) -> float | None:
        """Rate of the dense windows; None where the preset cuts by index."""
        return None if self.settings.preset == "release" else self.settings.fps

    @property
    def repeated_frames(self) -> RepeatedFrames:
        return planned_repeats(self.clips)

    @property
    def histories(self) -> Histories:
        return planned_histories(self.clips)


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
    opened: dict[str, PlannedVideo] = {}
    progress.begin("planning", total=len(files), unit="videos")
    for path in files:
        if failure_limit is not None and len(planned.failures) > failure_limit:
            break
        planned.names.append(display_name(path, folder))
        video = _identified(path, folder, planned, progress)
        if video and video.digest in opened:
            planned.repeats.append((video.name, opened[video.digest].source.name))
        elif video and (info := _opened(video, decoder, planned, progress)):
            opened[video.digest] = PlannedVideo(video, info)
        progress.advance(1)
    planned.settings = _with_rate(settings, list(opened.values()), progress)
    for found in opened.values():
        _plan_video(found, planned)
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


def _plan_video(video: PlannedVideo, planned: PlannedFolder) -> None:
    name, digest, settings = video.source.name, video.source.digest, planned.settings
    if clips := plan_clips(video.source, video.info, settings):
        planned.videos[digest] = replace(video, clips=clips)
    else:
        duration_s = float(video.info.times_s[-1])
        planned.too_short.append(ShortVideo(name, digest, duration_s, settings.needed))


def _with_rate(settings: ClipSettings, opened: Sequence[PlannedVideo], progress: Progress) -> ClipSettings:
    """The settings with a number for the rate, which is told where it had to be found.

    The slowest rate that a video has, of those that give a clip at their own: a scrap of two frames a second
    apart would slow down all.
    """
    if settings.dense_fps != "auto" or settings.preset == "release":
        return settings
    times_s = {video.source.name: video.info.times_s for video in opened}
    rates = {name: rate for name, times in times_s.items() if (rate := measured_rate(times))}
    lasting = {
        name: rate
        for name, rate in rates.items()
        if has_clip(times_s[name], replace(settings, dense_fps=rate.fps))
    }
    if not rates:
        return replace(settings, dense_fps=UNKNOWN_FPS)
    chosen = lasting or rates
    settled = replace(settings, dense_fps=min(rate.fps for rate in chosen.values()))
    short = [name for name in rates if rates[name].fps < settled.fps]
    lost = [name for name in lasting if not has_clip(times_s[name], settled)]
    slow = [name for name in chosen if chosen[name].fps == settled.fps]
    progress.note(
        described_rates(chosen)
        + described_short(short, rates, clip_span_s=lambda fps: replace(settings, dense_fps=fps).clip_span_s)
        + described_lost(lost, slow, clip_span_s=settled.clip_span_s)
    )
    return settled
