"""What a batch is read into, and what comes out: tensors of several arrays, and how long each clip is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

ArrayKey = tuple[str, str]
"""Name of a feature set and of one of its arrays."""


@dataclass(frozen=True, slots=True)
class FeatureBatch:
    """Features of the same clips, in the same order, from one or several sets."""

    arrays: Mapping[ArrayKey, torch.Tensor]
    """`(clip, *array shape)`; the layer axis as asked for, the token axis as long as the longest clip."""
    lengths: Mapping[str, torch.Tensor]
    """Tokens of each clip by set, int64 `(clip,)`; for sets of which a ragged array was asked for."""

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for values in self.arrays.values())


class BatchBuffers:
    """Memory that batch after batch is read into; pinned where a GPU will fetch it from there.

    A batch is a view of it: the next batch that is read into the same buffers overwrites the last one.
    """

    def __init__(self, *, pinned: bool | None = None) -> None:
        """`pinned`: None for pinned where CUDA is there."""
        self._pinned = torch.cuda.is_available() if pinned is None else pinned
        self._storages: dict[ArrayKey, torch.Tensor] = {}

    def tensor(self, key: ArrayKey, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor in the memory kept for `key`, which grows to the largest batch."""
        needed_bytes = math.prod(shape) * dtype.itemsize
        storage = self._storages.get(key)
        if storage is None or storage.numel() < needed_bytes:
            storage = torch.empty(needed_bytes, dtype=torch.uint8, pin_memory=self._pinned)
            self._storages[key] = storage
        return storage[:needed_bytes].view(dtype).view(shape)
