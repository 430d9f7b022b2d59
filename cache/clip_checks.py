"""What features must be like before they are stored, and the checksum that they are known by."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from thinkjepa.cache.records import ArraySpec, ClipFeatures, FeatureSet
from thinkjepa.cache.shard import crc32c

NOT_FINITE_BITS = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000}
"""Exponent bits that are all ones in inf and NaN; testing them needs no float conversion."""

FINITE_BLOCK = 1 << 18
"""Values tested at a time: 512 KB of float16 stay in the cache between the two passes."""

Bits = npt.NDArray[Any]


def clip_problem(features: ClipFeatures, feature_set: FeatureSet) -> str:
    """Why these features must not be stored, or an empty string. Finds shapes, dtypes, inf and NaN."""
    for name, spec in feature_set.given_arrays.items():
        values = features.arrays.get(name)
        if values is None:
            return f"{name} is missing"
        ragged = spec.dims.index("token") if "token" in spec.dims else None
        expected = tuple(values.shape[i] if i == ragged else size for i, size in enumerate(spec.shape))
        if tuple(values.shape) != expected or values.dtype != spec.torch_dtype:
            return f"{name} is {values.dtype} {tuple(values.shape)}, the set holds {spec.dtype} {spec.shape}"
        if ragged is not None and values.shape[ragged] > spec.shape[ragged]:
            return (
                f"{name} has {values.shape[ragged]} tokens, the cache holds at most {spec.shape[ragged]}: "
                "use fewer thinker frames or a lower resolution"
            )
        if problem := _not_finite(values, spec, feature_set):
            return problem
    return ""


def features_checksum(features: ClipFeatures, feature_set: FeatureSet) -> str:
    """crc32c of all arrays' raw bytes in the order of their names, as the index holds it."""
    checksum = 0
    for name in feature_set.given_arrays:
        values = features.arrays[name].contiguous().view(torch.uint8)
        checksum = crc32c(values.numpy().reshape(-1), checksum)
    return f"{checksum:08x}"


def _not_finite(values: torch.Tensor, spec: ArraySpec, feature_set: FeatureSet) -> str:
    exponent = NOT_FINITE_BITS.get(values.dtype)
    if exponent is None or _all_finite(_bits(values), exponent):
        return ""
    bad = (_bits(values) & exponent) == exponent
    first = int(bad.reshape(bad.shape[0], -1).any(axis=1).argmax())
    where = f"layer {feature_set.layers[first]}" if spec.dims[0] == "layer" else f"{spec.dims[0]} {first}"
    return (
        f"{spec.name}, {where}: {int(bad[first].sum())} values of {tuple(bad[first].shape)} are inf or NaN "
        f"in {spec.dtype}; extract with --dtype {'float32' if spec.dtype == 'bfloat16' else 'bfloat16'}"
    )


def _all_finite(bits: Bits, exponent: int) -> bool:
    """Whether no value has all exponent bits set: by the largest bit patterns of positive and of negative
    values, block by block (11 GB/s, where masks of the whole array reach 0.7)."""
    flat = bits.reshape(-1)
    signed = flat.view(np.dtype(f"i{flat.itemsize}"))
    sign = 1 << (8 * flat.itemsize - 1)
    for start in range(0, len(flat), FINITE_BLOCK):
        stop = start + FINITE_BLOCK
        if signed[start:stop].max() >= exponent or flat[start:stop].max() >= (exponent | sign):
            return False
    return True


def _bits(values: torch.Tensor) -> Bits:
    """The bit patterns of a float tensor, as unsigned integers of its width."""
    unsigned = torch.uint32 if values.dtype.itemsize == 4 else torch.uint16
    bits: Bits = values.contiguous().view(unsigned).numpy()
    return bits
