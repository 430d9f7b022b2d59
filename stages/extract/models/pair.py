"""The two feature sets that a run asks of the cache."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch

from thinkjepa.cache import ArraySpec, Codec, FeatureSet, Kind, describe_set
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.device import choose_device
from thinkjepa.stages.extract.encoder.base import VideoEncoder, encoder_arrays
from thinkjepa.stages.extract.encoder.families import open_encoder
from thinkjepa.stages.extract.models.runtime import choose_dtype, quiet_transformers
from thinkjepa.stages.extract.models.weights import ModelFolder, find_model, is_identified
from thinkjepa.stages.extract.remembered import extraction_record
from thinkjepa.stages.extract.settings import GPU_BATCH, ModelSettings, VllmSettings
from thinkjepa.stages.extract.thinker.contract import TOKEN_CAPACITY, TYPICAL_TOKENS, Thinker, thinker_arrays
from thinkjepa.stages.extract.thinker.hooks import HookedThinker
from thinkjepa.stages.extract.thinker.vllm.thinker import VllmThinker

BYTES_PER_MB = 10**6


@dataclass(frozen=True, slots=True)
class Storing:
    """How new sets are stored: shards of `shard_mb`, a codec, and what of them in 8 bits."""

    shard_mb: int
    codec: Codec = "none"
    fp8: str = "none"

    def fp8_arrays(self, part: str, *names: str) -> tuple[str, ...]:
        """These arrays, where their part of the features is to be stored in 8 bits."""
        return names if self.fp8 in (part, "all") else ()


def thinker_set(thinker: Thinker, clips: ClipSettings, *, dtype: str, storing: Storing) -> FeatureSet:
    """Named by the model's origin and the way its frames are chosen."""
    arrays = thinker_arrays(thinker.layers, width=thinker.width, dtype=dtype)
    full = sum(spec.clip_bytes for spec in arrays)
    return describe_set(
        "thinker",
        origin={**thinker.origin, "sampling": clips.thinker_sampling},
        source=thinker.source,
        arrays=arrays,
        shard_bytes=storing.shard_mb * BYTES_PER_MB,
        typical_clip_bytes=full * TYPICAL_TOKENS // TOKEN_CAPACITY,
        codec=storing.codec,
        fp8_arrays=storing.fp8_arrays("tokens", "tokens"),
    )


def latent_arrays(encoder: VideoEncoder, clips: ClipSettings) -> tuple[ArraySpec, ...]:
    """The encoder's arrays. Raises StageError where it does not take windows of these lengths."""
    return encoder_arrays(
        encoder,
        observed_frames=clips.observed_frames,
        future_frames=clips.future_frames,
        future_windows=clips.future_windows,
    )


def encoder_set(encoder: VideoEncoder, clips: ClipSettings, *, storing: Storing) -> FeatureSet:
    """Named by the model's origin and the way its frames are chosen."""
    arrays = latent_arrays(encoder, clips)
    return describe_set(
        "encoder",
        origin={**encoder.origin, "sampling": clips.dense_sampling},
        source=encoder.source,
        arrays=arrays,
        shard_bytes=storing.shard_mb * BYTES_PER_MB,
        typical_clip_bytes=sum(spec.clip_bytes for spec in arrays),
        codec=storing.codec,
        fp8_arrays=storing.fp8_arrays("latents", "observed", "future"),
    )


TRANSFORMERS = VllmSettings()


@dataclass(slots=True)
class FrozenModels:
    """The two models, their weights loaded only when there is something to extract."""

    thinker: HookedThinker
    encoder: VideoEncoder

    @classmethod
    def find(
        cls, settings: ModelSettings, *, device: str, vllm: VllmSettings = TRANSFORMERS, batch_size: int = 0
    ) -> FrozenModels:
        """Find both and read their configuration. Raises StageError with the remedy."""
        quiet_transformers()
        place = choose_device(device)
        dtype = choose_dtype(settings.dtype, place)
        thinker = find_model(settings.thinker, revision=settings.revision, role="thinker")
        encoder = find_model(settings.encoder, revision=settings.encoder_revision, role="encoder")
        return cls(
            _thinker(thinker, settings, vllm, dtype=dtype, device=place, batch_size=batch_size),
            open_encoder(encoder, dtype=dtype, device=place),
        )

    def __enter__(self) -> FrozenModels:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.thinker.close()

    def folders(self, kinds: Collection[Kind]) -> list[ModelFolder]:
        """Where the named models lie, the thinker first."""
        models = {"thinker": self.thinker.folder, "encoder": self.encoder.folder}
        return [folder for kind, folder in models.items() if kind in kinds]

    def unidentified(self) -> list[ModelFolder]:
        """Models whose weights have to be read whole to know which they are."""
        return [folder for folder in self.folders(("thinker", "encoder")) if not is_identified(folder)]

    def load(self, kinds: Iterable[Kind]) -> None:
        """Bring the weights of the named models into memory."""
        for kind in kinds:
            (self.thinker if kind == "thinker" else self.encoder).load()

    def record(
        self,
        sets: Mapping[Kind, FeatureSet],
        clips: ClipSettings,
        models: ModelSettings,
        vllm: VllmSettings,
    ) -> dict[str, Any]:
        """What the cache remembers of an extraction into these sets."""
        folders = {"thinker": self.thinker.folder, "encoder": self.encoder.folder}
        return extraction_record(sets, clips, models, vllm, **folders, dtype=self.thinker.dtype)

    def sets(
        self, clips: ClipSettings, storing: Storing, *, batch_size: int = 1
    ) -> tuple[FeatureSet, FeatureSet]:
        """What a run asks of the cache. Shards of both hold equally many clips, as a unit of work fills both,
        and whole batches: forwards have as many rows for a part of one.
        """
        thinker = thinker_set(self.thinker, clips, dtype=self.thinker.dtype, storing=storing)
        encoder = encoder_set(self.encoder, clips, storing=storing)
        rows = min(thinker.rows_per_shard, encoder.rows_per_shard)
        rows = max(batch_size, rows - rows % batch_size)
        return replace(thinker, rows_per_shard=rows), replace(encoder, rows_per_shard=rows)


def _thinker(
    folder: ModelFolder,
    settings: ModelSettings,
    vllm: VllmSettings,
    *,
    dtype: str,
    device: torch.device,
    batch_size: int,
) -> HookedThinker:
    if vllm.backend == "transformers":
        return HookedThinker(folder, settings, dtype=dtype, device=device)
    return VllmThinker(folder, settings, vllm, dtype=dtype, device=device, batch_size=batch_size or GPU_BATCH)
