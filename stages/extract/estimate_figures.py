"""What an estimate says: of a folder of videos, and of its models where they can be described."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from thinkjepa.cache import Failure
from thinkjepa.stages.data.repeated_frames import RepeatedFrames


@dataclass(slots=True)
class ModelFigures:
    """One of the two models and its feature set; totals are over all clips."""

    model: str
    parameters: int
    weights_bytes: int
    tokens_per_clip: list[int] | None
    """Least and most; of the encoder, latent tokens of all windows. None where there are no clips."""
    total_flops: int
    disk_bytes: int
    array_bytes: dict[str, int]
    """Payload on disk by array, without the indexes of shards (below 0.1 % at real sizes)."""


@dataclass(slots=True)
class MemoryFigures:
    """Bytes at the peak of a batch, roughly; on the CPU both sums share one memory."""

    weights_bytes: int
    """Of both models, on the device."""
    activation_bytes: int
    """Of the larger of the two forwards, on the device."""
    key_value_bytes: int
    """What the thinker keeps while it generates, on the device."""
    frame_bytes: int
    """Decoded frames and preprocessed pixels, on the host."""
    state_bytes: int
    """Hidden states and latents on their way to the disk, on the host."""

    @property
    def device_bytes(self) -> int:
        return self.weights_bytes + self.activation_bytes + self.key_value_bytes

    @property
    def host_bytes(self) -> int:
        return self.frame_bytes + self.state_bytes

    def to_json(self) -> dict[str, int]:
        return {**asdict(self), "device_bytes": self.device_bytes, "host_bytes": self.host_bytes}


@dataclass(slots=True, kw_only=True)
class FolderEstimate:
    """What an extraction of a folder is made of, as far as that is known without the models."""

    videos: int
    video_hours: float
    clips: int
    thinker_frames: int
    """Frames that the thinker is given, of all clips."""
    encoder_windows: int
    encoder_frames: int
    """Frames of all windows."""
    failed_videos: int
    allowed_failed_videos: int | None
    """None where no number was given."""
    failures: list[Failure]
    repeats: list[tuple[str, str]]
    dense_fps: float | None
    """Rate of the dense windows; None where the preset cuts by index."""
    repeated_frames: RepeatedFrames
    dtype: str
    disk_bytes: int | None
    """Of all features; without the models by their published shapes, None where these are not known."""
    warnings: list[str]
    assumptions: list[str]

    def to_json(self) -> dict[str, Any]:
        """All keys of an estimate; those of the models are null where these are not described."""
        unknown = dict.fromkeys([field.name for field in fields(Estimate)] + ["hours"])
        return {**unknown, **asdict(self), "repeated_frames": self.repeated_frames.to_json()}


@dataclass(slots=True, kw_only=True)
class Estimate(FolderEstimate):
    """What an extraction will take. `to_json` has all of it, and `hours`."""

    device: str
    batch_size: int
    thinker: ModelFigures
    encoder: ModelFigures
    disk_bytes: int
    memory: MemoryFigures
    tflops: float
    tflops_measured: bool
    """Whether `tflops` was measured here by matrix products rather than given."""
    utilisation: float
    model_hours: float
    decode_hours: float
    """Decoding and preprocessing, as measured here on `decode_clips` clips."""
    decode_clips: int

    @property
    def hours(self) -> float:
        """One batch is decoded while another is in the models; where these run on the CPU, they share it."""
        on_cpu = self.device == "cpu" and self.tflops_measured
        parts = (self.model_hours, self.decode_hours)
        return sum(parts) if on_cpu else max(parts)

    def to_json(self) -> dict[str, Any]:
        return {**FolderEstimate.to_json(self), "memory": self.memory.to_json(), "hours": self.hours}
