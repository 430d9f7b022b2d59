"""The features that a run reads: which sets and clips of a cache, and their tensors batch by batch.

`build_features` makes them once, from the sets and what the run does with them; training finds the sets by
name, evaluation by the fingerprints that a run recorded. Latents are transformed on the device: averaged over
squares of patches, layer-normed, or left as they are.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from thinkjepa.cache import BatchBuffers, ClipSelection, FeatureCache, FeatureSet
from thinkjepa.stages.data.framing import set_framing
from thinkjepa.stages.data.repeated_frames import unequal_starts
from thinkjepa.stages.data.sampling import UNSPACED
from thinkjepa.stages.data.trajectories import Supervision
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.data.batches import batches_in_order
from thinkjepa.stages.train.data.feature_sets import choose_set, find_history, smallest
from thinkjepa.stages.train.data.on_grid import OnGrid, grid_part, transform_latents, transformed_grid
from thinkjepa.stages.train.data.poses import ObservedPoses, TrajectoryBatch, observed_poses
from thinkjepa.stages.train.data.sources import GuidanceSource
from thinkjepa.stages.train.data.states import (
    ClipArrays,
    clip_tokens,
    count_states,
    read_pooled,
    require_states,
    settled_guidance,
)
from thinkjepa.stages.train.data.tokens import ClipTokens, TokenBatch, packed
from thinkjepa.stages.train.model.config import (
    WITHOUT_LATENTS,
    WITHOUT_THINKER,
    LatentGrid,
    LatentTransform,
    ThinkerShape,
    parse_source,
)
from thinkjepa.stages.train.model.reading import TokenReading, split_names
from thinkjepa.stages.train.settings import Task, TrainSettings

KINDS_BATCH = 1024
"""Clips whose tokens' kinds are read at once: four megabytes."""

SHORTEST_S = 1e-3
"""Of an observed window. One that repeats a single frame would divide by zero."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Features of some clips on one device. None stands for what the run does not read."""

    observed: Tensor | None
    """`(batch, step, patch, dim)`"""
    future: Tensor | None
    """`(batch, step, patch, dim)`, all windows one after the other."""
    pooled: Tensor | None
    """`(batch, level, stream, dim)`, float32."""
    trajectory: TrajectoryBatch | None = None
    tokens: TokenBatch | None = None

    @property
    def latents(self) -> tuple[Tensor, Tensor]:
        """The observed and the future ones, of a run that reads latents."""
        assert self.observed is not None, "asked for latents of a run without"
        assert self.future is not None, "asked for latents of a run without"
        return self.observed, self.future

    @property
    def poses(self) -> ObservedPoses | None:
        """The observed poses; None in a run without trajectories."""
        return self.trajectory.poses if self.trajectory else None


@dataclass(frozen=True, slots=True)
class Features:
    """The feature sets and clips that a run reads. Batches come from the mapped cache, nothing is held."""

    cache: FeatureCache
    encoder: FeatureSet
    thinker: FeatureSet | None
    """The set whose states guide: a thinker's, or the history of `--guidance-source history`."""
    clips: ClipSelection
    """Clips complete in all sets, with trajectories where `supervision` has them, sorted by id."""
    supervision: Supervision | None = None
    """Hand trajectories of the clips; None in a run on latents alone."""
    transform: LatentTransform = field(default_factory=LatentTransform)
    reading: TokenReading = field(default_factory=TokenReading)
    """The thinker's states that batches hold one by one, next to the pooled ones."""
    streams: tuple[str, ...] = ()
    """Streams of the pooled states that are read. Empty: all of the set."""
    windows: int = 1
    """Future windows that batches hold. More than one is rolled out."""
    layers: tuple[int, ...] = ()
    """Thinker layers that are read, of a set that holds more; empty: all."""
    source: GuidanceSource = field(default_factory=GuidanceSource)
    """Source of the thinker's states: the clips' own, or a control."""
    reads_latents: bool = True
    """False for a run on joints alone: the encoder's set tells steps and frames, its arrays are not read."""

    def reaching(self, *, windows: int) -> "Features":
        """The same features with so many future windows.

        Raises StageError where fewer are stored, or the later ones are of other moments than the first.
        """
        encoder = smallest([self.encoder], windows=windows)
        sampling = encoder.origin["sampling"]
        if windows > 1 and sampling.get("rule") == UNSPACED and (reason := unequal_starts(self.clips)):
            raise StageError(
                f"{encoder.name} is of an earlier version, {reason}: what is learned of the first says "
                "nothing of them; extract again, or ask for one window"
            )
        return replace(self, windows=windows)

    def knowing(self, train_ids: Collection[str]) -> "Features":
        """The same features without joints that no training clip knows. Raises StageError if none is left."""
        if self.supervision is None:
            return self
        return replace(self, supervision=self.supervision.knowing(train_ids))

    def batch(self, clip_ids: Sequence[str], device: torch.device) -> Batch:
        """Transformed features of `clip_ids`, in that order, on `device`."""
        return self.transformed(self.stored(clip_ids, BatchBuffers(pinned=False)), device)

    def stored(self, clip_ids: Sequence[str], buffers: BatchBuffers) -> Batch:
        """Features of `clip_ids` on the CPU, just as they are stored, latents in `buffers`."""
        observed = future = None
        if self.reads_latents:
            future = self._read_latents("future", clip_ids, buffers).flatten(1, 2)
            observed = self._read_latents("observed", clip_ids, buffers)
        return Batch(
            observed=observed,
            future=future,
            pooled=self.pooled(clip_ids) if self.thinker else None,
            trajectory=self.trajectories(clip_ids, torch.device("cpu")) if self.supervision else None,
            tokens=self.tokens(clip_ids) if self.reading else None,
        )

    def transformed(self, stored: Batch, device: torch.device) -> Batch:
        """A stored batch on `device`, float32, its latents transformed."""
        return Batch(
            observed=None if stored.observed is None else self.transformed_latents(stored.observed, device),
            future=None if stored.future is None else self.transformed_latents(stored.future, device),
            pooled=None if stored.pooled is None else stored.pooled.to(device),
            trajectory=None if stored.trajectory is None else stored.trajectory.to(device),
            tokens=None if stored.tokens is None else stored.tokens.to(device),
        )

    def _read_latents(self, array: str, clip_ids: Sequence[str], buffers: BatchBuffers) -> Tensor:
        return self.cache.read(self.encoder.name, array, clip_ids, windows=self.windows, out=buffers)

    def transformed_latents(self, latents_BTPD: Tensor, device: torch.device) -> Tensor:
        """Stored latents on `device`, float32, transformed."""
        return transform_latents(latents_BTPD.to(device).float(), self.stored_grid, self.transform)

    def trajectories(self, clip_ids: Sequence[str], device: torch.device) -> TrajectoryBatch:
        """Joints of `clip_ids`, in that order, cut into the encoder's latent steps."""
        assert self.supervision is not None, "asked for trajectories in a run without labels"
        found = [self.supervision.trajectory(clip_id) for clip_id in clip_ids]
        times_s = [self.supervision.observed_times_s(clip_id) for clip_id in clip_ids]
        future_m = np.stack([item.future_m[: self.windows] for item in found])
        confidence = np.stack([item.future_confidence[: self.windows] for item in found])
        steps = (len(clip_ids), -1, self.tubelet, len(self.supervision.joints))
        return TrajectoryBatch(
            poses=observed_poses(found, times_s).to(device),
            future_m=torch.from_numpy(future_m).reshape(*steps, 3).to(device),
            future_confidence=torch.from_numpy(confidence).reshape(steps).to(device),
        )

    @property
    def tubelet(self) -> int:
        """Frames of one latent step."""
        return int(self.encoder.origin["tubelet"])

    def pooled(self, clip_ids: Sequence[str]) -> Tensor:
        """Pooled states of the source `(clip, level, stream, dim)`, float32, on the CPU."""
        assert self.thinker is not None, "asked for a thinker's states in a run without one"
        shape = self.thinker_shape
        if (made_BD := self.source.made(clip_ids, dim=shape.dim)) is not None:
            return made_BD[:, None, None].repeat(1, shape.levels, len(shape.streams), 1)
        named, layers = self.source.read_from(clip_ids), self.layers or None
        return read_pooled(self.cache, self.thinker, named, layers=layers, streams=shape.streams)

    def tokens(self, clip_ids: Sequence[str]) -> TokenBatch:
        """Slots and tokens of the source that are read, on the CPU, as stored.

        States that are made are a single one, in the middle of the frame at the split.
        """
        assert self.thinker is not None, "asked for a thinker's states in a run without one"
        shape = self.thinker_shape
        if (made_BD := self.source.made(clip_ids, dim=shape.dim)) is not None:
            counts = self.source.count_made(clip_ids).tolist()
            made = made_BD[:, None, None].repeat(1, shape.levels, 1, 1).unbind()
            return packed([self._made_token(*each) for each in zip(made, counts, strict=True)])
        arrays, held = ClipArrays(self.cache, self.thinker, layers=self.layers or None), self.thinker.arrays
        return packed(
            [
                clip_tokens(self.reading, arrays.of(clip_id), held=held, on_grid=self._placed(clip_id))
                for clip_id in self.source.read_from(clip_ids)
            ]
        )

    def _made_token(self, states_LSD: Tensor, count: int) -> ClipTokens:
        positions = OnGrid(self.grid, 1.0).middle[None, :] if self.reading.positioned else None
        return ClipTokens(
            states_LSD[:, :count],
            count if self.reading.slots else None,
            None if positions is None else positions[:count],
        )

    def count_tokens(self, clip_ids: Sequence[str], reading: TokenReading | None = None) -> Tensor:
        """Slots and tokens that the source has of each clip to be read, `(clip,)`."""
        assert self.thinker is not None, "asked for a thinker's states in a run without one"
        if self.source.made((), dim=0) is not None:
            return self.source.count_made(clip_ids)
        named = self.source.read_from(clip_ids)
        counts = [
            count_states(self.cache, self.thinker, batch, reading or self.reading)
            for batch in batches_in_order(named, batch_size=KINDS_BATCH)
        ]
        return torch.cat(counts) if counts else torch.zeros(0, dtype=torch.int64)

    def _placed(self, clip_id: str) -> OnGrid | None:
        """A clip's moments and places on the grid. None where no positions are read."""
        if not self.reading.positioned:
            return None
        assert self.thinker is not None
        size_px = self.cache.index(self.thinker.name).frame_px(clip_id)
        return self.on_grid(size_px, step_s=self._step_s(clip_id))

    def on_grid(self, size_px: tuple[int, int] | None, *, step_s: float) -> OnGrid:
        """Moments and places on the grid, of a video of this width and height (None: unknown)."""
        return OnGrid(self.grid, step_s, grid_part(set_framing(self.encoder.source), size_px))

    def _step_s(self, clip_id: str) -> float:
        """Seconds of a latent step: those of the sampling's rate, or of the clip where it has none."""
        if fps := self.encoder.origin["sampling"].get("fps"):
            return self.tubelet / float(fps)
        times_s = self.clips.only([clip_id])[0].observed_times_s
        return self.tubelet * max(times_s[-1] - times_s[0], SHORTEST_S) / (len(times_s) - 1)

    def of_layers(self, states_LND: Tensor) -> Tensor:
        """The levels that are read, of states `(level, ...)` of all layers that the set has."""
        if self.thinker is None or not self.layers:
            return states_LND
        return states_LND[[self.thinker.layers.index(layer) for layer in self.layers]]

    @property
    def grid(self) -> LatentGrid:
        """The grid of the transformed latents."""
        return transformed_grid(self.stored_grid, self.transform)

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
    def future_steps(self) -> int:
        """Latent steps of the future, of all windows."""
        return self.windows * int(self.encoder.arrays["future"].shape[1])

    @property
    def thinker_shape(self) -> ThinkerShape:
        """Sizes and streams of the pooled states that are read, of a run with a thinker."""
        assert self.thinker is not None, "asked for a thinker's states in a run without one"
        levels, _, dim = self.thinker.arrays["pooled"].shape
        streams = self.streams or self.thinker.streams
        return ThinkerShape(levels=len(self.layers) or levels, dim=dim, streams=streams)


def build_features(
    cache: FeatureCache,
    encoder: FeatureSet,
    thinker: FeatureSet | None,
    *,
    task: Task = "latent",
    joints: str = "auto",
    min_confidence: float = 0.0,
    transform: LatentTransform | None = None,
    reading: TokenReading | None = None,
    streams: tuple[str, ...] = (),
    windows: int = 1,
    layers: tuple[int, ...] = (),
    only: Collection[str] | None = None,
    reads_latents: bool = True,
) -> Features:
    """The features of these sets, limited to the clips `only`, in batches that hold what is asked for.

    Task `trajectory` limits them to clips with hand labels; `auto` does so where any clip has them. Raises
    StageError where no clip is left, or the sets hold too few windows, or lack an array or stream.
    """
    if thinker is not None:
        require_states(thinker, reading or TokenReading(), streams)
    clips = _complete_clips(cache, [item for item in (encoder, thinker) if item], only=only)
    supervision = None
    if task == "trajectory" or (task == "auto" and any_labels(cache, clips)):
        supervision = Supervision(cache.labels, clips, joints=joints, min_confidence=min_confidence)
        clips = clips.only(supervision.clip_ids)
    features = Features(
        cache=cache,
        encoder=encoder,
        thinker=thinker,
        clips=clips,
        supervision=supervision,
        transform=transform or LatentTransform(),
        reading=reading or TokenReading(),
        streams=streams,
        layers=layers,
        reads_latents=reads_latents,
    )
    return features.reaching(windows=windows)


def _complete_clips(
    cache: FeatureCache, sets: Sequence[FeatureSet], *, only: Collection[str] | None
) -> ClipSelection:
    names = [item.name for item in sets]
    clips = cache.select(*names)
    if only is not None:
        clips = clips.only(only)
    if not clips:
        raise StageError(f"no clip has features in all of {', '.join(names)}: extract some first")
    return clips


def any_labels(cache: FeatureCache, clips: ClipSelection) -> bool:
    """True if any clip's video has hand labels."""
    if not len(cache.labels):
        return False
    return any(cache.labels.label_digest(digest) for digest in set(clips.values("video_digest")))


def choose_features(
    cache: FeatureCache,
    settings: TrainSettings,
    *,
    thinker_set: str | None = None,
    history_set: str | None = None,
    encoder_set: str | None = None,
    only: Collection[str] | None = None,
) -> Features:
    """The features that a training with these settings reads, of the sets named or the only ones there are.

    Variants without a thinker read no states of one. Their clips are all the same limited to those that have
    them, where a thinker set is named or only one exists: all variants of one cache then train on the same
    clips. The set itself is no part of their features, so that another prompt with the same clips gives the
    same run. The same holds for a run guided by the history, the encoder's features of this thinker's frames.
    Raises StageError for a variant of joints alone where no clip has hand labels.
    """
    encoder, thinker = choose_set(cache, "encoder", encoder_set, windows=settings.rollout_windows), None
    is_guided = settings.variant not in WITHOUT_THINKER
    reads_history = is_guided and parse_source(settings.guidance_source)[0] == "history"
    reads_thinker = is_guided and not reads_history
    if reads_thinker or thinker_set is not None or len(cache.filled_sets("thinker")) == 1:
        thinker = choose_set(cache, "thinker", thinker_set)
    if only is None and thinker and not reads_thinker:
        only = _complete_clips(cache, [encoder, thinker], only=None).clip_ids.to_pylist()
    guiding = thinker if reads_thinker else None
    if reads_history:
        guiding = find_history(cache, encoder, thinker, history_set)
    guidance = settled_guidance(settings.guidance_shape, guiding) if guiding else None
    reads_latents = settings.variant not in WITHOUT_LATENTS
    if not reads_latents and not len(cache.labels):
        raise StageError(
            f"--variant {settings.variant} forecasts hands from observed hands, and the cache has no hand "
            "labels: thinkjepa-data import stores them there, or train another variant"
        )
    return build_features(
        cache,
        encoder,
        guiding,
        task=settings.task if reads_latents else "trajectory",
        reads_latents=reads_latents,
        joints=settings.joints,
        min_confidence=settings.min_confidence,
        transform=settings.transform,
        reading=guidance.reading() if guidance else None,
        streams=split_names(guidance.use_streams) if guidance else (),
        windows=settings.rollout_windows,
        only=only,
    )
