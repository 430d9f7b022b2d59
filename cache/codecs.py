"""Compression of inner chunks. A set has one codec, chosen by whoever creates it."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numcodecs.blosc import Blosc
from numcodecs.zstd import Zstd
from zarr.codecs import BloscCodec, BloscShuffle, ZstdCodec

from thinkjepa.cache.records import Codec
from thinkjepa.cache.shard import Bytes

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
    """The codecs by which zarr reads what `compressed` wrote."""
    if codec == "zstd":
        return [ZstdCodec(level=ZSTD_LEVEL, checksum=False)]
    if codec == "blosc":
        shuffle = BloscShuffle.bitshuffle if itemsize == 1 else BloscShuffle.shuffle
        return [BloscCodec(typesize=itemsize, cname=BLOSC_INNER, clevel=BLOSC_LEVEL, shuffle=shuffle)]
    return []


def _blosc(itemsize: int) -> Blosc:
    shuffle = Blosc.BITSHUFFLE if itemsize == 1 else Blosc.SHUFFLE
    return Blosc(cname=BLOSC_INNER, clevel=BLOSC_LEVEL, shuffle=shuffle)
