"""Reading the thinker's states of clips: chosen streams of the means, and slots and tokens one by one."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from thinkjepa.cache import BatchBuffers, FeatureCache, FeatureSet
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.data.on_grid import OnGrid
from thinkjepa.stages.train.data.tokens import ClipTokens, is_kind
from thinkjepa.stages.train.model.reading import (
    SLOTS,
    GuidanceShape,
    TokenArray,
    TokenReading,
    chosen_streams,
)

AXES: dict[TokenArray, str] = {"tokens": "token", "text_tokens": "text"}
"""Axis of each array of tokens, which begins the names of its kinds and positions."""

KEPT = {"slots": "slots", "text_tokens": "text", "tokens": "tokens"}
"""What `--keep` calls an array."""


def settled_guidance(guidance: GuidanceShape, thinker: FeatureSet | None) -> GuidanceShape:
    """Guidance with its choices settled by what a set holds. Raises StageError for a stream it lacks.

    A history holds no text: of the states to be read one by one, its slots are left.
    """
    if thinker is None:
        return guidance
    if thinker.kind == "history":
        guidance = replace(guidance, cross_tokens=SLOTS)
    return guidance.for_features(thinker.name, streams=thinker.streams, arrays=thinker.arrays)


def require_states(item: FeatureSet, reading: TokenReading, streams: Sequence[str]) -> None:
    """Raises StageError where a thinker's set lacks an array or a stream that is read."""
    if missing := [name for name in reading.arrays if name not in item.arrays]:
        kept = ",".join(dict.fromkeys(("pooled", "slots", "text", KEPT[missing[0]])))
        extract = "" if item.kind == "history" else f"extract again with --keep {kept}, or "
        raise StageError(
            f"feature set {item.name} holds no {missing[0]}, which --guidance cross or spatial reads: "
            f"{extract}train with --guidance film or adaln"
        )
    chosen_streams(",".join(streams) or "auto", item.streams, of=f"feature set {item.name}")


def read_pooled(
    cache: FeatureCache,
    item: FeatureSet,
    clip_ids: Sequence[str],
    *,
    layers: Sequence[int] | None,
    streams: Sequence[str],
) -> Tensor:
    """Means of these streams `(clip, level, stream, dim)`, float32. None reads all layers."""
    pooled = cache.read(item.name, "pooled", clip_ids, layers=layers).float()
    held = item.streams
    return pooled if tuple(streams) == held else pooled[:, :, [held.index(name) for name in streams]]


Load = Callable[[str], Tensor]
"""Gives an array of one clip, as long as the clip has entries."""


def clip_tokens(
    reading: TokenReading, load: Load, *, held: Collection[str], on_grid: OnGrid | None
) -> ClipTokens:
    """States that are read one by one of a clip whose arrays are `held`, slots first.

    `on_grid` is given where positions are read.
    """
    parts = []
    if reading.slots:
        assert on_grid is not None, "slots are always read with their positions"
        states_LSD, positions = load("slots"), on_grid.coordinates(load("slot_position"))
        parts.append(ClipTokens(states_LSD, states_LSD.shape[1], positions))
    if reading.kinds:
        parts.append(_chosen_tokens(reading, load, held, on_grid))
    known = [part.positions for part in parts if part.positions is not None]
    return ClipTokens(
        torch.cat([part.states for part in parts], dim=1),
        parts[0].slots,
        torch.cat(known) if known else None,
    )


def _chosen_tokens(
    reading: TokenReading, load: Load, held: Collection[str], on_grid: OnGrid | None
) -> ClipTokens:
    axis = AXES[reading.array]
    chosen_S = is_kind(load(f"{axis}_kind"), reading.kinds)
    states_LSD = load(reading.array)[:, chosen_S]
    if on_grid is None:
        return ClipTokens(states_LSD)
    position = f"{axis}_position"
    if position in held:
        return ClipTokens(states_LSD, positions=on_grid.coordinates(load(position)[chosen_S]))
    return ClipTokens(states_LSD, positions=on_grid.at_split(states_LSD.shape[1]))


class ClipArrays:
    """Reads whole arrays of one clip after another from a set, into memory that is used again.

    Clip by clip, as tokens of kinds that are not read would take several times a batch's memory.
    """

    def __init__(self, cache: FeatureCache, item: FeatureSet, *, layers: Sequence[int] | None = None) -> None:
        self.cache, self.item, self.layers = cache, item, layers
        self._buffers = BatchBuffers(pinned=False)

    def of(self, clip_id: str) -> Load:
        """The arrays of a clip, as stored. An array is valid until the same one of another clip is read."""
        return lambda name: self._read(name, clip_id)

    def _read(self, name: str, clip_id: str) -> Tensor:
        axis = self.item.arrays[name].ragged
        (count,) = self.cache.index(self.item.name).count_tokens([clip_id], axis=axis).tolist()
        return self.cache.read(
            self.item.name, name, [clip_id], layers=self.layers, tokens=count, out=self._buffers
        )[0]


def count_states(
    cache: FeatureCache, item: FeatureSet, clip_ids: Sequence[str], reading: TokenReading
) -> Tensor:
    """Slots and tokens that are read of each clip, `(clip,)`."""
    index = cache.index(item.name)
    total = torch.zeros(len(clip_ids), dtype=torch.int64)
    if reading.slots:
        total += torch.from_numpy(index.count_tokens(clip_ids, axis="slot"))
    if reading.kinds and len(clip_ids):
        kinds = cache.read(item.name, f"{AXES[reading.array]}_kind", clip_ids)
        total += is_kind(kinds, reading.kinds).sum(dim=1)
    return total
