"""Encoding of features for storage: float8 with scales, compression, and inner chunks.

An fp8 array takes half the disk: float8 (e4m3) values, a float32 scale for each token, and the token's error.
A token is the vector along an array's last axis. Its largest magnitude becomes 448, the largest of e4m3.
Values within 2^-15 of it keep three bits of mantissa, so they are off by at most 1/16 of themselves.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numcodecs.blosc import Blosc
from numcodecs.zstd import Zstd
from zarr.codecs import BloscCodec, BloscShuffle, ZstdCodec

from thinkjepa.cache.disk.files import Bytes
from thinkjepa.cache.records import ERROR, RAGGED, SCALE, ArraySpec, ClipFeatures, Codec, FeatureSet

LARGEST = torch.finfo(torch.float8_e4m3fn).max

SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def companions(spec: ArraySpec) -> tuple[ArraySpec, ArraySpec]:
    """The arrays stored with an fp8 array: each token's scale, and its relative L2 error."""
    axes = zip(spec.dims[:-1], spec.shape[:-1], spec.chunks[:-1], strict=True)
    chunks = tuple(chunk if dim in RAGGED else size for dim, size, chunk in axes)
    scale = replace(
        spec,
        name=spec.name + SCALE,
        dims=spec.dims[:-1],
        shape=spec.shape[:-1],
        chunks=chunks,
        dtype="float32",
        encoding="plain",
    )
    return scale, replace(scale, name=spec.name + ERROR)


def quantized(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bits of the float8 values, uint8 like `values`, and scales, float32 without the last axis."""
    exact = values.float()
    scale = (exact.abs().amax(dim=-1) / LARGEST).clamp_min(SMALLEST_SCALE)
    codes = (exact / scale[..., None]).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return codes.view(torch.uint8), scale


def restored(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values as they are read: float8 times scale in float32, then rounded to `dtype`."""
    return (codes.view(torch.float8_e4m3fn).float() * scale[..., None]).to(dtype)


def token_errors(exact: torch.Tensor, approximate: torch.Tensor) -> torch.Tensor:
    """Relative L2 error of every token (float32, without the last axis), 0 for a token of zeros."""
    difference = (exact.double() - approximate.double()).norm(dim=-1)
    size = exact.double().norm(dim=-1)
    return torch.where(size > 0, difference / size.clamp_min(1e-300), difference).float()


CODECS: tuple[Codec, ...] = get_args(Codec)

ZSTD_LEVEL = BLOSC_LEVEL = 3

BLOSC_INNER: Literal["zstd"] = "zstd"


def compressed(raw: Bytes, codec: Codec, *, itemsize: int) -> Bytes:
    """A chunk's raw bytes as they are stored (before their crc32c)."""
    if codec == "zstd":
        return np.frombuffer(Zstd(level=ZSTD_LEVEL, checksum=False).encode(raw), dtype=np.uint8)
    if codec == "blosc":
        values = raw.view(f"u{itemsize}")  # blosc takes the size of an element from the buffer
        return np.frombuffer(_blosc(itemsize).encode(values), dtype=np.uint8)
    return raw


def zarr_compressors(codec: Codec, *, itemsize: int) -> list[Any]:
    """The codecs by which zarr reads the chunks that `compressed` returns."""
    if codec == "zstd":
        return [ZstdCodec(level=ZSTD_LEVEL, checksum=False)]
    if codec == "blosc":
        shuffle = BloscShuffle.bitshuffle if itemsize == 1 else BloscShuffle.shuffle
        return [BloscCodec(typesize=itemsize, cname=BLOSC_INNER, clevel=BLOSC_LEVEL, shuffle=shuffle)]
    return []


def _blosc(itemsize: int) -> Blosc:
    shuffle = Blosc.BITSHUFFLE if itemsize == 1 else Blosc.SHUFFLE
    return Blosc(cname=BLOSC_INNER, clevel=BLOSC_LEVEL, shuffle=shuffle)


@dataclass(frozen=True, slots=True)
class StoredClip:
    """A clip in both forms: the tensors whose bytes are stored, and the features as they are read."""

    arrays: Mapping[str, torch.Tensor]
    as_read: ClipFeatures


def prepared(features: ClipFeatures, feature_set: FeatureSet) -> StoredClip:
    """The stored form of checked features. Without fp8 arrays it is the features themselves."""
    stored, read = dict(features.arrays), dict(features.arrays)
    for name, spec in feature_set.arrays.items():
        if spec.encoding == "fp8":
            stored[name], scale = quantized(features.arrays[name])
            read[name] = restored(stored[name], scale, spec.torch_dtype)
            stored[name + SCALE] = scale
            stored[name + ERROR] = token_errors(features.arrays[name], read[name])
    return StoredClip(stored, replace(features, arrays=read))


def blocks(values: torch.Tensor, spec: ArraySpec) -> Iterator[tuple[tuple[int, ...], Bytes]]:
    """Position and encoded bytes of the inner chunks that a clip has, zero-padded at the ragged end."""
    itemsize = values.dtype.itemsize
    raw = values.contiguous().view(torch.uint8).numpy()
    sizes = (*spec.chunks[:-1], spec.chunks[-1] * itemsize)
    counts = [range(math.ceil(n / size)) for n, size in zip(raw.shape, sizes, strict=True)]
    for position in itertools.product(*counts):
        starts = [index * size for index, size in zip(position, sizes, strict=True)]
        part = raw[tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))]
        if part.shape != sizes:
            padded = np.zeros(sizes, dtype=np.uint8)
            padded[tuple(slice(0, size) for size in part.shape)] = part
            part = padded
        yield position, compressed(np.ascontiguousarray(part).reshape(-1), spec.codec, itemsize=itemsize)
