"""The pair of frozen models of a run, described first and loaded only where there is work for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch

from thinkjepa.cache import FeatureSet, Kind
from thinkjepa.stages.data.clips import ClipSettings
from thinkjepa.stages.device import choose_device
from thinkjepa.stages.extract.device import choose_dtype, quiet_transformers
from thinkjepa.stages.extract.encoder import VideoEncoder
from thinkjepa.stages.extract.encoders import open_encoder
from thinkjepa.stages.extract.feature_sets import Storing, encoder_set, thinker_set
from thinkjepa.stages.extract.hooked_thinker import HookedThinker
from thinkjepa.stages.extract.remembered import extraction_record
from thinkjepa.stages.extract.settings import GPU_BATCH, ModelSettings
from thinkjepa.stages.extract.vllm_settings import VllmSettings
from thinkjepa.stages.extract.vllm_thinker import VllmThinker
from thinkjepa.stages.extract.weights import ModelFolder, find_model, is_identified

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
