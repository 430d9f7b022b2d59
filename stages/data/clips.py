"""Planning clips: from a video's frame times and the settings to clip rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from thinkjepa.cache import ClipRow, fingerprint
from thinkjepa.stages.data.decode_process import VideoInfo
from thinkjepa.stages.data.sampling import ClipFrames, Times, dual_clip, release_clip, window_splits
from thinkjepa.stages.data.videos import SourceVideo
from thinkjepa.stages.errors import StageError


class PlanError(StageError):
    """A video cannot give a clip with these settings."""


def setting(default: Any, text: str, *, rare: bool = False) -> Any:
    """A settings field: its default, the one sentence that is its help, and whether few need it."""
    return field(default=default, metadata={"help": text, "rare": rare})


@dataclass(frozen=True, slots=True)
class ClipSettings:
    """How clips are cut from videos and which frames the two frozen models see."""

    PANEL: ClassVar[str] = "Clips"

    preset: Literal["dual", "release"] = setting(
        "dual",
        "dual: thinker over the whole history, encoder over a dense window; "
        "release: as the published code, split at half the frames, the thinker sees the observed frames.",
    )
    thinker_frames: int = setting(16, "Frames for the thinker, spread over everything before the split.")
    observed_frames: int = setting(32, "Frames of the observed window, a multiple of the encoder's tubelet.")
    future_frames: int = setting(32, "Frames of a future window, a multiple of the encoder's tubelet.")
    future_windows: int = setting(1, "Future windows one after the other; more than 1 for long rollouts.")
    dense_fps: float | Literal["auto"] = setting(
        "auto",
        "Rate of the observed and future windows, frames per second. auto: the videos' own, the slowest "
        "one's where they differ; above a video's own rate frames repeat.",
    )
    stride_s: float = setting(2.0, "Seconds between the splits of a long video.")

    def __post_init__(self) -> None:
        for name in ("thinker_frames", "observed_frames", "future_frames"):
            number = getattr(self, name)
            if number < 2 or number % 2:
                raise ValueError(
                    f"--{name.replace('_', '-')} {number}: give an even number of frames, 2 or more"
                )
        if self.future_windows < 1:
            raise ValueError(f"--future-windows {self.future_windows}: give 1 or more")
        if self.preset == "release" and self.future_windows != 1:
            raise ValueError("--preset release has one future window: leave --future-windows at 1")
        if self.dense_fps != "auto" and not (np.isfinite(self.dense_fps) and self.dense_fps > 0):
            raise ValueError(f"--dense-fps {self.dense_fps}: give a number above 0, or auto")
        if not (np.isfinite(self.stride_s) and self.stride_s > 0):
            raise ValueError(f"--stride-s {self.stride_s}: give a number above 0")

    @property
    def fps(self) -> float:
        """`dense_fps` as a number: `auto` has become one when clips are planned."""
        assert self.dense_fps != "auto", "the rate is known when the videos are: PlannedFolder.settings"
        return float(self.dense_fps)

    @property
    def thinker_sampling(self) -> dict[str, Any]:
        """What determines the thinker's frames, given the split; with its fingerprint."""
        if self.preset == "release":
            return _named({"rule": "release", "frames": self.observed_frames})
        return _named({"rule": "history", "frames": self.thinker_frames})

    @property
    def dense_sampling(self) -> dict[str, Any]:
        """What determines the encoder's frames, given the split; with its fingerprint."""
        numbers = {"observed": self.observed_frames, "future": self.future_frames}
        if self.preset == "release":
            return _named({"rule": "release", **numbers})
        return _named({"rule": "window", **numbers, "windows": self.future_windows, "fps": self.fps})

    @property
    def observed_span_s(self) -> float:
        return (self.observed_frames - 1) / self.fps

    @property
    def future_span_s(self) -> float:
        return (self.future_windows * self.future_frames - 1) / self.fps

    @property
    def clip_span_s(self) -> float:
        """Seconds that a video has to last for one clip."""
        return self.observed_span_s + 1 / self.fps + self.future_span_s


def plan_clips(video: SourceVideo, info: VideoInfo, settings: ClipSettings) -> list[ClipRow]:
    """The clips of one video in the order of their splits. Raises PlanError where it gives none."""
    rows = [_row(video, info.times_s, frames, settings) for frames in _choose(info.times_s, settings)]
    if not rows:
        raise PlanError(
            f"too short: {info.times_s[-1]:.2f} s, a clip needs {settings.clip_span_s:.2f} s "
            f"({settings.observed_frames} + {settings.future_windows * settings.future_frames} frames at "
            f"{settings.fps:g} fps); use fewer frames or a higher --dense-fps"
        )
    return rows


def has_clip(times_s: Times, settings: ClipSettings) -> bool:
    """Whether a video with frames at these times gives a clip."""
    return bool(_splits(times_s, settings))


def _choose(times_s: Times, settings: ClipSettings) -> list[ClipFrames]:
    if settings.preset == "release":
        if len(times_s) < 2:
            raise PlanError(f"too short: {len(times_s)} frame, the release preset needs 2 or more")
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
        observed_span_s=settings.observed_span_s,
        future_span_s=settings.future_span_s,
        stride_s=settings.stride_s,
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
