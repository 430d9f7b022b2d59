"""The pair of frozen models of a run, described first and loaded only where there is work for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from thinkjepa.cache import FeatureSet, Kind
from thinkjepa.stages.data.clips import ClipSettings
from thinkjepa.stages.extract.device import choose_device, choose_dtype, quiet_transformers
from thinkjepa.stages.extract.encoder import VideoEncoder
from thinkjepa.stages.extract.feature_sets import encoder_set, thinker_set
from thinkjepa.stages.extract.hooked_thinker import HookedThinker
from thinkjepa.stages.extract.settings import ModelSettings
from thinkjepa.stages.extract.weights import find_model


@dataclass(slots=True)
class FrozenModels:
    """The two models, their weights loaded only when there is something to extract."""

    thinker: HookedThinker
    encoder: VideoEncoder

    @classmethod
    def find(cls, settings: ModelSettings, *, device: str) -> FrozenModels:
        """Find both and read their configuration. Raises StageError with the remedy."""
        quiet_transformers()
        place = choose_device(device)
        dtype = choose_dtype(settings.dtype, place)
        thinker = find_model(settings.thinker, revision=settings.revision, role="thinker")
        encoder = find_model(settings.encoder, revision=settings.encoder_revision, role="encoder")
        return cls(
            HookedThinker(thinker, settings, dtype=dtype, device=place),
            VideoEncoder(encoder, dtype=dtype, device=place),
        )

    def load(self, kinds: Iterable[Kind]) -> None:
        """Bring the weights of the named models into memory."""
        for kind in kinds:
            (self.thinker if kind == "thinker" else self.encoder).load()

    def sets(self, clips: ClipSettings, *, shard_mb: int) -> tuple[FeatureSet, FeatureSet]:
        return (
            thinker_set(self.thinker, clips, dtype=self.thinker.dtype, shard_mb=shard_mb),
            encoder_set(self.encoder, clips, shard_mb=shard_mb),
        )
