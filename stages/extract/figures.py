"""The figures of an estimate, and the bytes that features take on disk."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from thinkjepa.cache import ClipRow, Failure, FeatureSet, Kind, WriteSession
from thinkjepa.cache.shards.format import CRC_BYTES, INDEX_DTYPE, stored_bytes
from thinkjepa.cache.shards.identity import ShardIdentity
from thinkjepa.stages.data.history import Histories
from thinkjepa.stages.data.labels.contract import LabelError
from thinkjepa.stages.data.labels.readers import LabelFolder, LabelSource
from thinkjepa.stages.data.plan import ClipSettings, PlannedFolder
from thinkjepa.stages.data.repeated_frames import RepeatedFrames
from thinkjepa.stages.data.short_videos import ShortVideo
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.settings import ModelSettings, parse_layers
from thinkjepa.stages.extract.thinker.kept import TYPICAL, Kept


@dataclass(slots=True)
class ModelFigures:
    """Figures of one model and its feature set. Totals are over all clips."""

    model: str
    parameters: int
    weights_bytes: int
    tokens_per_clip: list[int] | None
    """Least and most. The encoder's are the latent tokens of all windows. None where there are no clips."""
    total_flops: int
    disk_bytes: int
    """Payload and indexes of shards."""
    array_bytes: dict[str, int]
    """Payload on disk by array, without the indexes of shards (below 0.1 % at real sizes)."""
    index_bytes: int
    """Indexes of all shards."""


@dataclass(slots=True)
class MemoryFigures:
    """Bytes at the peak of a batch, roughly. On the CPU both sums share one memory."""

    weights_bytes: int
    """Both models, on the device."""
    activation_bytes: int
    """The larger of the two forwards, on the device."""
    key_value_bytes: int
    """The thinker's key-value cache, on the device."""
    frame_bytes: int
    """Decoded frames and preprocessed pixels, on the host."""
    state_bytes: int
    """Hidden states and latents on their way to the disk, on the host."""

    @property
    def device_bytes(self) -> int:
        """Sum on the device."""
        return self.weights_bytes + self.activation_bytes + self.key_value_bytes

    @property
    def host_bytes(self) -> int:
        """Sum on the host."""
        return self.frame_bytes + self.state_bytes

    def to_json(self) -> dict[str, int]:
        """All fields and both sums."""
        return {**asdict(self), "device_bytes": self.device_bytes, "host_bytes": self.host_bytes}


@dataclass(slots=True, kw_only=True)
class FolderEstimate:
    """The figures of an extraction that are known without the models."""

    videos: int
    usable_videos: int
    """Videos with clips."""
    video_hours: float
    """Of the videos with clips."""
    clips: int
    thinker_frames: int
    """Frames for the thinker, of all clips."""
    encoder_windows: int
    encoder_frames: int
    """Frames of all windows."""
    failed_videos: int
    allowed_failed_videos: int | None
    """None where no number was given."""
    failures: list[Failure]
    too_short: list[ShortVideo]
    """Videos that open and have no room for a clip. They are no failures."""
    repeats: list[tuple[str, str]]
    dense_fps: float | None
    """Rate of the dense windows. None where the preset cuts by index."""
    repeated_frames: RepeatedFrames
    histories: Histories
    dtype: str
    label_bytes: int
    """Hand labels, by those of a few videos."""
    disk_bytes: int | None
    """Features and labels. Without the models by their published shapes, None where these are not known."""
    warnings: list[str]
    assumptions: list[str]

    def to_json(self) -> dict[str, Any]:
        """All keys of an estimate. Those of the models are null where these are not described."""
        unknown = dict.fromkeys([field.name for field in fields(Estimate)] + ["hours"])
        return {**unknown, **asdict(self), "repeated_frames": self.repeated_frames.to_json()}


@dataclass(slots=True, kw_only=True)
class Estimate(FolderEstimate):
    """The figures of an extraction. `to_json` has all of them, and `hours`."""

    device: str
    batch_size: int
    thinker: ModelFigures
    encoder: ModelFigures
    history: ModelFigures | None
    """The encoder over the thinker's frames, its weights not counted again; None where it is not kept."""
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
        """Hours in all. One batch is decoded while another is in the models, unless both share the CPU."""
        on_cpu = self.device == "cpu" and self.tflops_measured
        parts = (self.model_hours, self.decode_hours)
        return sum(parts) if on_cpu else max(parts)

    def to_json(self) -> dict[str, Any]:
        """All fields, sums and hours."""
        return {**FolderEstimate.to_json(self), "memory": self.memory.to_json(), "hours": self.hours}


GB = 10**9


CLIP_ID_BYTES = 25
"""Of a clip in a shard's identity: a video's id, a split frame of five digits, quotes and a comma."""


def index_bytes(feature_set: FeatureSet, *, num_clips: int) -> int:
    """Bytes of a set's shards besides features: offset and length of each chunk, and identities."""
    shards = math.ceil(num_clips / feature_set.rows_per_shard)
    pairs = feature_set.rows_per_shard * sum(
        math.prod(spec.chunk_grid) for spec in feature_set.arrays.values()
    )
    identities = sum(
        shards * len(ShardIdentity.of(feature_set, name, 0).encoded()) + num_clips * CLIP_ID_BYTES
        for name in feature_set.arrays
    )
    return shards * (2 * INDEX_DTYPE.itemsize * pairs + CRC_BYTES * len(feature_set.arrays)) + identities


LABEL_RECORD_BYTES = 2200
"""Of a video's labels besides its numbers: names, digests, alignment. Measured on 96 videos of 23 joints."""

READ_LABELS = 3
"""Videos whose labels are read to know the bytes of a frame."""


def label_bytes(planned: PlannedFolder, folder: Path) -> int:
    """Bytes of the hand labels of all planned videos, by those of a few and the number of frames.

    Broken labels count as none.
    """
    videos = list(planned.videos.values())
    labels = LabelFolder(folder, [video.source.path for video in videos])
    found = [(video, source) for video in videos if (source := _source(labels, video.source.path))]
    of_a_frame = []
    for _, source in found[:: max(1, math.ceil(len(found) / READ_LABELS))]:
        with suppress(LabelError):
            read = source.read()
            of_a_frame.append(read.nbytes / max(1, read.num_frames))
    if not of_a_frame:
        return 0
    num_frames = sum(len(video.info.times_s) for video, _ in found)
    return round(num_frames * sum(of_a_frame) / len(of_a_frame)) + len(found) * LABEL_RECORD_BYTES


def _source(labels: LabelFolder, video: Path) -> LabelSource | None:
    with suppress(LabelError):
        return labels.find(video)
    return None


def require_space(session: WriteSession, sets: Mapping[Kind, FeatureSet], clips: Sequence[ClipRow]) -> None:
    """Raise StageError where the missing features of clips, uncompressed, take more than the free space.

    A clip of the thinker counts with a typical number of tokens.
    """
    missing = {
        kind: {clip.clip_id for clip in clips} - session.done_clip_ids(item) for kind, item in sets.items()
    }
    needed = sum(
        len(missing[kind]) * stored_bytes(spec, TYPICAL)
        for kind, item in sets.items()
        for spec in item.arrays.values()
    )
    free = shutil.disk_usage(session.root).free
    if needed > free:
        number = len(set.union(*missing.values()))
        raise StageError(
            f"{number} clips without features take about {needed / GB:.2g} GB, and {str(session.root)!r} has "
            f"{free / GB:.2g} GB free: free space, choose another --cache-dir, keep fewer --layers or give "
            "--fp8 all; --ignore-space extracts as much as there is room for"
        )


@dataclass(frozen=True, slots=True)
class ThinkerShape:
    """Number of decoder layers, and width of the residual stream."""

    num_layers: int
    width: int


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """Patches of a latent step, their width, and the frames of a step."""

    num_patches: int
    width: int
    tubelet: int = 2


THINKERS = {
    f"Qwen/Qwen3-VL-{size}-{kind}": shape
    for size, shape in {
        "2B": ThinkerShape(28, 2048),
        "4B": ThinkerShape(36, 2560),
        "8B": ThinkerShape(36, 4096),
    }.items()
    for kind in ("Thinking", "Instruct")
}

ENCODERS = {
    "facebook/vjepa2-vitl-fpc64-256": EncoderShape(16 * 16, 1024),
    "facebook/vjepa2-vith-fpc64-256": EncoderShape(16 * 16, 1280),
    "facebook/vjepa2-vitg-fpc64-256": EncoderShape(16 * 16, 1408),
    "facebook/vjepa2-vitg-fpc64-384": EncoderShape(24 * 24, 1408),
}
"""Shapes of their configurations on the hub."""


def known_clip_bytes(models: ModelSettings, clips: ClipSettings, *, dtype: str) -> tuple[int, int] | None:
    """Approximate bytes of a clip, of the thinker and of the encoder, or None where one is not known.

    The thinker's tokens are a typical number. Raises StageError for layers that the thinker does not have.
    """
    thinker, encoder = THINKERS.get(models.thinker), ENCODERS.get(models.encoder)
    if thinker is None or encoder is None:
        return None
    layers = parse_layers(models.layers, num_layers=thinker.num_layers)
    arrays = Kept.of(models).arrays(layers, width=thinker.width, dtype=dtype)
    states = sum(stored_bytes(spec, TYPICAL) for spec in arrays)
    frames = clips.observed_frames + clips.future_windows * clips.future_frames
    values = math.ceil(frames / encoder.tubelet) * encoder.num_patches * encoder.width
    element: torch.dtype = getattr(torch, dtype)
    return states, values * element.itemsize
