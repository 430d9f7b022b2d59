"""From a clip's features to the blocks that are stored: float8 where the set says so, chunks, compression."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from thinkjepa.cache import fp8
from thinkjepa.cache.codecs import compressed
from thinkjepa.cache.records import ERROR, SCALE, ArraySpec, ClipFeatures, FeatureSet
from thinkjepa.cache.shard import Bytes


@dataclass(frozen=True, slots=True)
class StoredClip:
    """A clip in both forms: the tensors whose bytes are stored, and the features as they will be read."""

    arrays: Mapping[str, torch.Tensor]
    as_read: ClipFeatures


def prepared(features: ClipFeatures, feature_set: FeatureSet) -> StoredClip:
    """What to store of features that have been checked. Without fp8 arrays it is the features themselves."""
    stored, read = dict(features.arrays), dict(features.arrays)
    for name, spec in feature_set.arrays.items():
        if spec.encoding == "fp8":
            stored[name], scale = fp8.quantised(features.arrays[name])
            read[name] = fp8.restored(stored[name], scale, spec.torch_dtype)
            stored[name + SCALE] = scale
            stored[name + ERROR] = fp8.token_errors(features.arrays[name], read[name])
    return StoredClip(stored, replace(features, arrays=read))


def blocks(values: torch.Tensor, spec: ArraySpec) -> Iterator[tuple[tuple[int, ...], Bytes]]:
    """Position and encoded bytes of the inner chunks that a clip has, zero-padded at the ragged end."""
    itemsize = values.dtype.itemsize
    raw = values.contiguous().view(torch.uint8).numpy()
    sizes = (*spec.chunks[:-1], spec.chunks[-1] * itemsize)
    counts = [range(math.ceil(n / size)) for n, size in zip(raw.shape, sizes, strict=True)]
    for position in itertools.product(*counts):
        starts = [place * size for place, size in zip(position, sizes, strict=True)]
        part = raw[tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))]
        if part.shape != sizes:
            padded = np.zeros(sizes, dtype=np.uint8)
            padded[tuple(slice(0, size) for size in part.shape)] = part
            part = padded
        yield position, compressed(np.ascontiguousarray(part).reshape(-1), spec.codec, itemsize=itemsize)
