"""A map-style torch dataset of a cache, for training programs of users."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from thinkjepa.cache.reader import FeatureCache
from thinkjepa.cache.records import KINDS, RAGGED, CacheError
from thinkjepa.cache.tables.clips import ClipSelection

Item = dict[str, Any]
"""Tensors by array name, the clip's id as `clip_id`, and the length of each ragged axis that is read, as
`token_count`, `slot_count` or `text_count`."""


class FeatureDataset(Dataset[Item]):
    """The clips that have features in every set that is read, sorted by clip_id.

    Items hold tensors in the stored dtype, on the CPU, without a batch axis. A pickle holds settings and clip
    ids but no open files, so DataLoader workers, also spawned ones, open the cache themselves. A DataLoader
    asks for whole batches (`__getitems__`), in which ragged arrays are as long as the longest clip.
    """

    def __init__(
        self,
        cache: str | Path | FeatureCache,
        arrays: Sequence[str] = ("observed", "future", "pooled"),
        *,
        sets: Sequence[str] = (),
        layers: Sequence[int] | None = None,
        windows: int | None = None,
    ) -> None:
        """Choose the arrays, layers and windows that are read.

        `sets` names feature sets (or the beginnings of their names) where the cache holds several of a kind.
        `layers` are layer ids of the thinker, `windows` the number of future windows. None reads all. Raises
        CacheError for an array that no set has, and where several sets could be meant.
        """
        self.cache = cache if isinstance(cache, FeatureCache) else FeatureCache.open(cache)
        self._keys = tuple((_set_with(self.cache, array, sets), array) for array in arrays)
        self._layers, self._windows = layers, windows
        for name, array in self._keys:
            spec = self.cache.feature_sets[name].arrays[array]
            if windows and "window" in spec.dims and windows > spec.shape[0]:
                raise CacheError(f"{name} holds {spec.shape[0]} future windows, not {windows}: extract more")
        self.clip_ids: list[str] = self.cache.select(*self.set_names).clip_ids.to_pylist()

    @property
    def set_names(self) -> tuple[str, ...]:
        """The feature sets that are read."""
        return tuple(dict.fromkeys(name for name, _ in self._keys))

    @property
    def clips(self) -> ClipSelection:
        """The clips' rows, sorted by clip_id: video, split frame, indices and times of all frames."""
        return self.cache.select(*self.set_names).only(self.clip_ids)

    def only(self, clip_ids: Sequence[str]) -> FeatureDataset:
        """The same dataset of these clips, in this order. Raises CacheError for a clip that it lacks."""
        if missing := set(clip_ids).difference(self.clip_ids):
            raise CacheError(f"clip {min(missing)!r} has no features in all of {', '.join(self.set_names)}")
        chosen = copy(self)
        chosen.clip_ids = list(clip_ids)
        return chosen

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Items of a batch, views of its memory. Raises CacheError for damaged bytes."""
        clip_ids = [self.clip_ids[index] for index in indices]
        columns: dict[str, Any] = {"clip_id": clip_ids}
        for name, array in self._keys:
            longest = None
            if axis := self.cache.feature_sets[name].arrays[array].ragged:
                lengths = self.cache.index(name).count_tokens(clip_ids, axis=axis).tolist()
                columns[RAGGED[axis]], longest = lengths, max(lengths, default=None)
            columns[array] = self.cache.read(
                name, array, clip_ids, layers=self._layers, tokens=longest, windows=self._windows
            )
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _set_with(cache: FeatureCache, array: str, selectors: Sequence[str]) -> str:
    """The named set that has `array`, or the only set of its kind."""
    kinds = {item.kind for item in cache.feature_sets.values() if array in item.arrays}
    if not kinds:
        held = sorted({name for item in cache.feature_sets.values() for name in item.arrays})
        raise CacheError(
            f"no set of {str(cache.path)!r} holds {array!r}; arrays are {', '.join(held) or 'none'}"
        )
    return cache.choose_set(min(kinds, key=KINDS.index), selectors).name
