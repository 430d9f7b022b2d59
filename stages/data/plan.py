"""Planning clips: from a video's frame times and the settings to clip rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic.dataclasses import dataclass as pydantic_dataclass

from thinkjepa.cache import ClipRow, Failure, fingerprint
from thinkjepa.cache.records import clip_name
from thinkjepa.stages.data.cutting.cuts import Cut, lacking, requested_cuts, whole_video
from thinkjepa.stages.data.cutting.reading import ClipRequest
from thinkjepa.stages.data.decoding.client import VideoInfo
from thinkjepa.stages.data.history import Histories, planned_histories
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
from thinkjepa.stages.data.videos import SourceVideo
from thinkjepa.stages.settings import Settings, setting

Requests = Sequence[ClipRequest] | None
"""Rows of the user's table for a video; None where the rule cuts its clips."""

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


def plan_clips(
    video: SourceVideo, info: VideoInfo, settings: ClipSettings, requests: Requests = None
) -> tuple[list[ClipRow], list[ShortVideo]]:
    """The clips of one video in the order of their splits, and requested ones without room."""
    times_s = info.times_s
    if settings.preset == "release":
        return [_row(video, times_s, frames, settings) for frames in _release(times_s, settings)], []
    fitting, short = _cuts(times_s, settings, requests)
    clips = [_row(video, times_s, _frames(times_s, cut, settings), settings, cut) for cut in fitting]
    return clips, [
        ShortVideo(video.name, video.digest, float(times_s[-1]), settings.needed, cut.where, reason)
        for cut, reason in short
    ]


def has_clip(times_s: Times, settings: ClipSettings, requests: Requests = None) -> bool:
    """True if a video with frames at these times gives a clip."""
    return bool(_cuts(times_s, settings, requests)[0])


def _cuts(
    times_s: Times, settings: ClipSettings, requests: Requests
) -> tuple[list[Cut], list[tuple[Cut, str]]]:
    """Cuts with room for their windows, by the rule or as requested, and the others with their reasons."""
    if requests is None:
        return whole_video(times_s, _splits(times_s, settings)), []
    room = {
        cut: lacking(
            times_s,
            cut,
            history_s=max(settings.observed_span_s, settings.min_history_s),
            num_future=settings.future_frames,
            num_windows=settings.future_windows,
            fps=settings.fps,
        )
        for cut in requested_cuts(times_s, requests)
    }
    return [cut for cut in room if not room[cut]], [(cut, room[cut]) for cut in room if room[cut]]


def _release(times_s: Times, settings: ClipSettings) -> list[ClipFrames]:
    if len(times_s) < RELEASE_NEEDS:
        return []
    observed, future = settings.observed_frames, settings.future_frames
    return [release_clip(len(times_s), num_observed=observed, num_future=future)]


def _frames(times_s: Times, cut: Cut, settings: ClipSettings) -> ClipFrames:
    return dual_clip(
        cut.own(times_s),
        cut.split - cut.first,
        thinker_frames=settings.thinker_frames,
        num_observed=settings.observed_frames,
        num_future=settings.future_frames,
        num_windows=settings.future_windows,
        fps=settings.fps,
    ).after(cut.first)


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


def _row(
    video: SourceVideo,
    times_s: Times,
    frames: ClipFrames,
    settings: ClipSettings,
    cut: Cut | None = None,
) -> ClipRow:
    first = cut.first if cut else 0
    return ClipRow(
        clip_id=clip_name(video.video_id, frames.split_frame, first_frame=first),
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
        group=cut.group if cut else "",
        partition=cut.partition if cut else "",
    )


def _named(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "fingerprint": fingerprint(record)[:12]}


def with_windows(sampling: Mapping[str, Any], windows: int) -> dict[str, Any]:
    """A record of `dense_sampling` with another number of future windows.

    Each window follows the one before it, so that the first of many are those of few, but for UNSPACED.
    """
    record = {name: value for name, value in sampling.items() if name != "fingerprint"}
    return _named({**record, "windows": windows})


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
    """Videos that open and have no room for a clip, and rows of a table without: no failures."""
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
