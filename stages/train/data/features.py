"""Stored latents as a run looks at them: pooled over squares of patches, layer-normed, or as they are.

Shape letters: B batch, T latent steps, P patches, D latent dim.

From the cache to a batch: which sets and clips a run reads, and their tensors.

Shape letters: B batch, T latent steps, P patches, D latent dim, L levels, S streams, W windows, K frames of a
latent step, J joints.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from thinkjepa.cache import BatchBuffers, ClipSelection, FeatureCache, FeatureSet, Kind
from thinkjepa.stages.data.trajectories import Positions, Supervision, Trajectory
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.data.batches import TokenBatch, read_tokens
from thinkjepa.stages.train.model.config import (
    WITHOUT_THINKER,
    LatentGrid,
    LatentView,
    ModelShape,
    ThinkerShape,
    Variant,
)


def viewed_grid(grid: LatentGrid, view: LatentView) -> LatentGrid:
    """The grid of the viewed latents. Raises StageError where squares do not tile it."""
    if grid.height % view.pool or grid.width % view.pool:
        raise StageError(
            f"latent_pool is {view.pool}, the encoder's grid of {grid.height} x {grid.width} patches is no "
            "multiple of it"
        )
    return replace(grid, height=grid.height // view.pool, width=grid.width // view.pool)


def viewed(latents: Tensor, grid: LatentGrid, view: LatentView) -> Tensor:
    """Float32 `(batch, step, patch, dim)` of the viewed grid, from `grid`'s; the norm follows the mean."""
    if view.pool > 1:
        rows, columns = grid.height // view.pool, grid.width // view.pool
        squares = latents.view(*latents.shape[:2], rows, view.pool, columns, view.pool, grid.dim)
        latents = squares.mean(dim=(3, 5)).flatten(2, 3)
    return F.layer_norm(latents, latents.shape[-1:]) if view.normalised else latents


@dataclass(frozen=True, slots=True)
class TrajectoryBatch:
    """Joints of some clips, float32, metres, in the frame of reference of `stages.data.trajectories`."""

    last_pose_m: Tensor
    """`(batch, joint, 3)`: where each joint was last seen in the observed window."""
    last_known: Tensor
    """`(batch, joint)`: 1 where it was seen at all, else 0."""
    future_m: Tensor
    """`(batch, step, frame, joint, 3)`"""
    future_confidence: Tensor
    """`(batch, step, frame, joint)`"""

    def to(self, device: torch.device) -> "TrajectoryBatch":
        tensors = (self.last_pose_m, self.last_known, self.future_m, self.future_confidence)
        return TrajectoryBatch(*(tensor.to(device) for tensor in tensors))


@dataclass(frozen=True, slots=True)
class Batch:
    """Float32 features of some clips, on one device; None is what a run has no use for."""

    observed: Tensor
    future: Tensor
    pooled: Tensor | None
    trajectory: TrajectoryBatch | None = None
    tokens: TokenBatch | None = None

    @property
    def last_pose_m(self) -> Tensor | None:
        return self.trajectory.last_pose_m if self.trajectory else None


@dataclass(frozen=True, slots=True)
class Features:
    """The feature sets that a run reads. Nothing is held in memory: batches come from the mapped cache."""

    cache: FeatureCache
    encoder: FeatureSet
    thinker: FeatureSet | None
    only: frozenset[str] | None = None
    """The clips that were selected, or None for all of the cache."""
    supervision: Supervision | None = None
    """Hand trajectories; where there is one, the clips are those that have them."""
    view: LatentView = field(default_factory=LatentView)
    """How the latents are looked at; `grid` is what is seen."""
    token_kinds: tuple[int, ...] = ()
    """Kinds of thinker tokens that batches hold beside the pooled states."""
    windows: int = 1
    """Future windows that batches hold, one behind the other: more than one is rolled out."""

    def reaching(self, *, windows: int) -> "Features":
        """The same features with so many future windows. Raises StageError where fewer are stored."""
        stored = self.encoder.arrays["future"].shape[0]
        if windows > stored:
            steps = self.stored_grid.future_steps
            raise StageError(
                f"{windows * steps} latent steps are {windows} future windows, {self.encoder.name} has "
                f"{stored}: extract with --future-windows {windows}, or ask for up to {stored * steps} steps"
            )
        return replace(self, windows=windows)

    def needed_by(self, shape: ModelShape) -> "Features":
        """The same features, in batches that hold what a model of this shape reads.

        Raises StageError where it reads tokens and the thinker's set holds pooled states only.
        """
        if shape.token_kinds and self.thinker is not None and "tokens" not in self.thinker.arrays:
            raise StageError(
                f"feature set {self.thinker.name} holds no tokens, which --guidance cross reads: extract "
                "them, or train with --guidance film or adaln"
            )
        return replace(self, view=shape.view, token_kinds=shape.token_kinds)

    def clips(self) -> ClipSelection:
        """Clips complete in all sets, sorted by id."""
        names = [item.name for item in (self.encoder, self.thinker) if item is not None]
        clips = self.cache.select(*names)
        if self.only is not None:
            clips = clips.only(self.only)
        if self.supervision is not None:
            clips = clips.only(self.supervision.clip_ids)
        if not clips:
            raise StageError(f"no clip has features in all of {', '.join(names)}: extract some first")
        return clips

    def batch(self, clip_ids: Sequence[str], device: torch.device) -> Batch:
        """Features of `clip_ids`, in that order."""
        return self.seen(self.stored(clip_ids, BatchBuffers(pinned=False)), device)

    def stored(self, clip_ids: Sequence[str], buffers: BatchBuffers) -> Batch:
        """Features of `clip_ids` on the CPU, just as they are stored, latents in `buffers`."""
        future_BWTPD = self._read_latents("future", clip_ids, buffers)
        return Batch(
            observed=self._read_latents("observed", clip_ids, buffers),
            future=future_BWTPD.flatten(1, 2),
            pooled=self.pooled(clip_ids) if self.thinker else None,
            trajectory=self.trajectories(clip_ids, torch.device("cpu")) if self.supervision else None,
            tokens=self.tokens(clip_ids) if self.token_kinds else None,
        )

    def seen(self, stored: Batch, device: torch.device) -> Batch:
        """A stored batch on `device`, float32, latents as the run looks at them."""
        return Batch(
            observed=self.viewed(stored.observed, device),
            future=self.viewed(stored.future, device),
            pooled=None if stored.pooled is None else stored.pooled.to(device),
            trajectory=None if stored.trajectory is None else stored.trajectory.to(device),
            tokens=None if stored.tokens is None else stored.tokens.to(device),
        )

    def _read_latents(self, array: str, clip_ids: Sequence[str], buffers: BatchBuffers) -> Tensor:
        spec = self.encoder.arrays[array]
        shape = (self.windows, *spec.shape[1:]) if array == "future" else spec.shape
        out = buffers.tensor((self.encoder.name, array), (len(clip_ids), *shape), spec.torch_dtype)
        return self.cache.read(self.encoder.name, array, clip_ids, windows=self.windows, out=out)

    def viewed(self, latents_BTPD: Tensor, device: torch.device) -> Tensor:
        """Stored latents on `device`, float32, as the run looks at them."""
        return viewed(latents_BTPD.to(device).float(), self.stored_grid, self.view)

    def trajectories(self, clip_ids: Sequence[str], device: torch.device) -> TrajectoryBatch:
        """Joints of `clip_ids`, in that order, cut into the encoder's latent steps."""
        assert self.supervision is not None, "asked for trajectories in a run without labels"
        found = [self.supervision.trajectory(clip_id) for clip_id in clip_ids]
        poses, known = zip(*map(last_seen, found), strict=True)
        future_m = np.stack([item.future_m[: self.windows] for item in found])
        confidence = np.stack([item.future_confidence[: self.windows] for item in found])
        steps = (len(clip_ids), -1, self.tubelet, len(self.supervision.joints))
        return TrajectoryBatch(
            last_pose_m=torch.from_numpy(np.stack(poses)).to(device),
            last_known=torch.from_numpy(np.stack(known)).to(device),
            future_m=torch.from_numpy(future_m).reshape(*steps, 3).to(device),
            future_confidence=torch.from_numpy(confidence).reshape(steps).to(device),
        )

    @property
    def tubelet(self) -> int:
        """Frames of one latent step."""
        return int(self.encoder.origin["tubelet"])

    def pooled(self, clip_ids: Sequence[str]) -> Tensor:
        """Pooled thinker states `(clip, level, stream, dim)`, float32, on the CPU."""
        assert self.thinker is not None, "asked for a thinker's states in a run without one"
        return self.cache.read(self.thinker.name, "pooled", clip_ids).float()

    def tokens(self, clip_ids: Sequence[str]) -> TokenBatch:
        """Thinker tokens of the kinds that are read, on the CPU, as stored."""
        assert self.thinker is not None, "asked for a thinker's states in a run without one"
        return read_tokens(self.cache, self.thinker.name, clip_ids, kinds=self.token_kinds)

    @property
    def grid(self) -> LatentGrid:
        """The latent grid as the run looks at it."""
        return viewed_grid(self.stored_grid, self.view)

    @property
    def stored_grid(self) -> LatentGrid:
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


def last_seen(trajectory: Trajectory) -> tuple[Positions, Positions]:
    """Each joint's last observed position of any confidence `(joint, 3)`; 1 or 0 for whether there is one."""
    seen_FJ = trajectory.observed_confidence > 0
    last_J = len(seen_FJ) - 1 - np.argmax(seen_FJ[::-1], axis=0)
    known_J: Positions = np.asarray(seen_FJ.any(axis=0), dtype=np.float32)
    return trajectory.observed_m[last_J, np.arange(len(last_J))] * known_J[:, np.newaxis], known_J


def choose_features(
    cache: FeatureCache, *, variant: Variant, thinker_set: str | None, encoder_set: str | None
) -> Features:
    """The sets that selectors name, or the only ones there are.

    `jepa` reads no thinker states, yet where a thinker set is named or only one exists, its clips are limited
    to those which have them, too: all variants of one cache then see the same clips. The set itself is no
    part of its features, so that another prompt with the same clips gives the same run.
    """
    encoder = _choose(cache, "encoder", encoder_set)
    alone = Features(cache=cache, encoder=encoder, thinker=None)
    num_thinkers = sum(item.kind == "thinker" for item in cache.feature_sets.values())
    if variant in WITHOUT_THINKER and thinker_set is None and num_thinkers != 1:
        return alone
    thinker = _choose(cache, "thinker", thinker_set)
    both = replace(alone, thinker=thinker)
    if variant in WITHOUT_THINKER:
        return replace(alone, only=frozenset(both.clips().clip_ids.to_pylist()))
    return both


def _choose(cache: FeatureCache, kind: Kind, selector: str | None) -> FeatureSet:
    """The set that `selector` names; one that names nothing is refused even where there is only one set."""
    chosen = cache.choose_set(kind, () if selector is None else (selector,))
    if selector and not (chosen.name.startswith(selector) or chosen.fingerprint.startswith(selector)):
        raise StageError(f"no {kind} set is named {selector!r} in {str(cache.path)!r}; it has {chosen.name}")
    return chosen
