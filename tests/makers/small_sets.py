"""A small thinker set and a small encoder set with random values of any dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from thinkjepa.cache import TOKEN_CHUNK, ArraySpec, ClipFeatures, ClipRow, Codec, FeatureSet, describe_set

LAYERS, DIM, CAPACITY = 3, 8, 256


def sampling(name: str) -> dict[str, Any]:
    return {"rule": "test", "fingerprint": name}


@pytest.fixture
def thinker_set() -> Callable[..., FeatureSet]:
    def build(
        *, dtype: str = "float32", prompt: str = "p", layers: tuple[int, ...] = (0, 1, 2), rows: int = 4
    ) -> FeatureSet:
        tokens = ArraySpec(
            "tokens", ("layer", "token", "dim"), (len(layers), CAPACITY, DIM), (1, TOKEN_CHUNK, DIM), dtype
        )
        kind = ArraySpec("token_kind", ("token",), (CAPACITY,), (CAPACITY,), "uint8")
        pooled = ArraySpec(
            "pooled", ("layer", "stream", "dim"), (len(layers), 2, DIM), (len(layers), 2, DIM), "float32"
        )
        return describe_set(
            "thinker",
            origin={"layers": list(layers), "prompt": prompt, "dtype": dtype, "sampling": sampling("t")},
            source={"model": "tiny"},
            arrays=(tokens, kind, pooled),
            shard_bytes=rows,
            typical_clip_bytes=1,
        )

    return build


@pytest.fixture
def encoder_set() -> Callable[..., FeatureSet]:
    def build(*, dtype: str = "float32", rows: int = 4, codec: Codec = "none") -> FeatureSet:
        observed = ArraySpec("observed", ("time", "patch", "dim"), (2, 4, DIM), (2, 4, DIM), dtype)
        future = ArraySpec(
            "future", ("window", "time", "patch", "dim"), (2, 2, 4, DIM), (1, 2, 4, DIM), dtype
        )
        return describe_set(
            "encoder",
            origin={"dtype": dtype, "sampling": sampling("d")},
            source={"model": "tiny"},
            arrays=(observed, future),
            shard_bytes=rows,
            typical_clip_bytes=1,
            codec=codec,
        )

    return build


@pytest.fixture
def make_features() -> Callable[..., ClipFeatures]:
    """Random features of one clip. Bit patterns differ in every clip, array and element."""

    def build(feature_set: FeatureSet, clip_id: str, *, num_tokens: int = 70) -> ClipFeatures:
        generator = torch.Generator().manual_seed(sum(clip_id.encode()) * 1000 + num_tokens)
        arrays: dict[str, torch.Tensor] = {}
        for name, spec in feature_set.arrays.items():
            shape = tuple(
                num_tokens if dim == "token" else n for dim, n in zip(spec.dims, spec.shape, strict=True)
            )
            if spec.dtype == "uint8":
                arrays[name] = torch.randint(1, 5, shape, generator=generator, dtype=torch.uint8)
            else:
                arrays[name] = torch.randn(shape, generator=generator).to(spec.torch_dtype)
        return ClipFeatures(clip_id, arrays, token_count=num_tokens, token_ids=(1, 2), generated_text="seen")

    return build


@pytest.fixture
def make_clip() -> Callable[..., ClipRow]:
    def build(clip_id: str, *, thinker: str = "t", dense: str = "d", video: str = "a/1.mp4") -> ClipRow:
        return ClipRow(
            clip_id=clip_id,
            video=video,
            video_digest=clip_id.split("@")[0].ljust(64, "0"),
            thinker_sampling=thinker,
            dense_sampling=dense,
            split_frame=int(clip_id.split("@")[1]) if "@" in clip_id else 4,
            split_time_s=0.4,
            thinker_frames=(0, 3),
            thinker_times_s=(0.0, 0.3),
            observed_frames=(0, 1, 2, 3),
            observed_times_s=(0.0, 0.1, 0.2, 0.3),
            future_frames=((4, 5, 6, 7), (8, 9, 10, 11)),
            future_times_s=((0.4, 0.5, 0.6, 0.7), (0.8, 0.9, 1.0, 1.1)),
        )

    return build
