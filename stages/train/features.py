"""From the cache to a batch: which sets and clips a run reads, and their tensors.

Shape letters: B batch, T latent steps, P patches, D latent dim, L levels, S streams.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thinkjepa.cache import ClipSelection, FeatureCache, FeatureSet, Kind
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.shapes import LatentGrid, ThinkerShape, Variant

TRAINED_WINDOW = 0  # of several future windows; the later ones serve long rollouts


@dataclass(frozen=True, slots=True)
class Batch:
    """Float32 features of some clips, on one device; `pooled` is None for a run without a thinker."""

    observed: Tensor
    future: Tensor
    pooled: Tensor | None


@dataclass(frozen=True, slots=True)
class Features:
    """The feature sets that a run reads. Nothing is held in memory: batches come from the mapped cache."""

    cache: FeatureCache
    encoder: FeatureSet
    thinker: FeatureSet | None
    only: frozenset[str] | None = None
    """The clips that were selected, or None for all of the cache."""

    def clips(self) -> ClipSelection:
        """Clips complete in all sets, sorted by id."""
        names = [item.name for item in (self.encoder, self.thinker) if item is not None]
        clips = self.cache.select(*names)
        if self.only is not None:
            clips = clips.only(self.only)
        if not clips:
            raise StageError(f"no clip has features in all of {', '.join(names)}: extract some first")
        return clips

    def batch(self, clip_ids: Sequence[str], device: torch.device) -> Batch:
        """Features of `clip_ids`, in that order."""
        future_BWTPD = self.cache.read(self.encoder.name, "future", clip_ids)
        return Batch(
            observed=self.cache.read(self.encoder.name, "observed", clip_ids).to(device).float(),
            future=future_BWTPD[:, TRAINED_WINDOW].to(device).float(),
            pooled=self.pooled(clip_ids).to(device) if self.thinker else None,
        )

    def pooled(self, clip_ids: Sequence[str]) -> Tensor:
        """Pooled thinker states `(clip, level, stream, dim)`, float32, on the CPU."""
        assert self.thinker is not None, "asked for a thinker's states in a run without one"
        return self.cache.read(self.thinker.name, "pooled", clip_ids).float()

    @property
    def grid(self) -> LatentGrid:
        """The encoder's latent grid, from the set's arrays and the spatial grid it recorded."""
        steps, patches, dim = self.encoder.arrays["observed"].shape
        height, width = self.encoder.origin["grid"]
        if height * width != patches:
            raise StageError(
                f"feature set {self.encoder.name}: grid {height} x {width} is not its {patches} patches"
            )
        future_steps = self.encoder.arrays["future"].shape[1]
        return LatentGrid(
            observed_steps=steps, future_steps=future_steps, height=height, width=width, dim=dim
        )

    @property
    def thinker_shape(self) -> ThinkerShape | None:
        if self.thinker is None:
            return None
        levels, _, dim = self.thinker.arrays["pooled"].shape
        return ThinkerShape(levels=levels, dim=dim)


def choose_features(
    cache: FeatureCache, *, variant: Variant, thinker_set: str | None, encoder_set: str | None
) -> Features:
    """The sets that selectors name, or the only ones there are.

    `jepa` reads no thinker states, yet where a thinker set is named or only one exists, its clips are limited
    to those which have them, too: all variants of one cache then see the same clips.
    """
    encoder = _choose(cache, "encoder", encoder_set)
    num_thinkers = sum(item.kind == "thinker" for item in cache.feature_sets.values())
    if variant == "jepa" and thinker_set is None and num_thinkers != 1:
        return Features(cache=cache, encoder=encoder, thinker=None)
    thinker = _choose(cache, "thinker", thinker_set)
    return Features(cache=cache, encoder=encoder, thinker=thinker)


def _choose(cache: FeatureCache, kind: Kind, selector: str | None) -> FeatureSet:
    """The set that `selector` names; one that names nothing is refused even where there is only one set."""
    chosen = cache.choose_set(kind, () if selector is None else (selector,))
    if selector and not (chosen.name.startswith(selector) or chosen.fingerprint.startswith(selector)):
        raise StageError(f"no {kind} set is named {selector!r} in {str(cache.path)!r}; it has {chosen.name}")
    return chosen
