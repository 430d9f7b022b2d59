"""Float8 with a scale per token: bounded errors, which are stored, and exact checks of what is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkjepa.cache import ArraySpec, ClipFeatures, FeatureCache, FeatureSet, WriteSession
from thinkjepa.cache.shards.encoding import quantized, restored, token_errors
from thinkjepa.cache.tables.catalog import describe_set
from thinkjepa.cache.upkeep.verify import clip_fault


@pytest.fixture
def fp8_set() -> Callable[..., FeatureSet]:
    def build(
        *, dtype: str = "float16", codec: str = "none", fp8: tuple[str, ...] = ("tokens",)
    ) -> FeatureSet:
        tokens = ArraySpec("tokens", ("layer", "token", "dim"), (3, 256, 32), (1, 64, 32), dtype)
        kind = ArraySpec("token_kind", ("token",), (256,), (256,), "uint8")
        return describe_set(
            "thinker",
            origin={"layers": [1, 5, 9], "sampling": {"fingerprint": "t"}},
            source={},
            arrays=(tokens, kind),
            shard_bytes=3,
            typical_clip_bytes=1,
            codec=codec,
            fp8_arrays=fp8,
        )

    return build


def features(clip_id: str, *, num_tokens: int, dtype: torch.dtype) -> ClipFeatures:
    generator = torch.Generator().manual_seed(num_tokens)
    tokens = (
        torch.randn((3, num_tokens, 32), generator=generator) * 10.0 ** torch.arange(-2, 1)[:, None, None]
    )
    tokens[0, 0] = 0
    kinds = torch.ones(num_tokens, dtype=torch.uint8)
    return ClipFeatures(clip_id, {"tokens": tokens.to(dtype), "token_kind": kinds}, token_count=num_tokens)


@settings(max_examples=60)
@given(
    exponents=st.lists(st.integers(-30, 30), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_a_value_is_off_by_a_sixteenth_of_itself_or_a_tiny_part_of_its_token(
    exponents: list[int], seed: int, dtype: torch.dtype
) -> None:
    values = torch.randn((len(exponents), 64), generator=torch.Generator().manual_seed(seed))
    if dtype is torch.float16:
        exponents = [max(-10, min(10, exponent)) for exponent in exponents]
    exact = (values * 2.0 ** torch.tensor(exponents)[:, None]).to(dtype)
    again = restored(*quantized(exact), dtype)
    largest = exact.double().abs().amax(dim=-1, keepdim=True)
    bound = torch.maximum(exact.double().abs() / 16, largest / 448 * 2.0**-10) * 1.01 + 1e-7 * (
        dtype is torch.float16
    )
    assert ((exact.double() - again.double()).abs() <= bound).all()
    assert (token_errors(exact, again) < 0.045).all()


def test_zeros_stay_zero_and_the_largest_values_stay_finite() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        largest = torch.finfo(dtype).max
        exact = torch.tensor([[0.0, 0.0], [largest, -largest]], dtype=dtype)
        assert torch.allclose(restored(*quantized(exact), dtype), exact, rtol=1e-2)
        assert restored(*quantized(exact), dtype).isfinite().all()


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_set_in_fp8_reads_in_its_dtype_with_the_error_that_it_records(
    tmp_path: Path, fp8_set: Callable[..., FeatureSet], dtype: str, codec: str
) -> None:
    feature_set = fp8_set(dtype=dtype, codec=codec)
    spec = feature_set.arrays["tokens"]
    given_clips = [features(f"v@{n}", num_tokens=n, dtype=spec.torch_dtype) for n in (70, 1, 200, 64)]
    with WriteSession(tmp_path / "c") as session, session.writer(session.resolve(feature_set)) as writer:
        assert writer.append(given_clips) == []
    cache = FeatureCache.open(tmp_path / "c")
    clip_ids = [item.clip_id for item in given_clips]
    batch = {
        name: cache.read(feature_set.name, name, clip_ids, layers=(9, 5), tokens=200)
        for name in ("tokens", "tokens_error")
    }
    for position, item in enumerate(given_clips):
        exact, read = item.arrays["tokens"][[2, 1]], batch["tokens"][position, :, : item.token_count]
        assert read.dtype == exact.dtype
        errors = batch["tokens_error"][position, :, : item.token_count]
        assert torch.equal(errors, token_errors(exact, read))
        assert 0.005 < float(errors.mean()) < 0.04
        assert not batch["tokens"][position, :, item.token_count :].any()
    assert {clip_fault(cache, feature_set, clip_id, full=True) for clip_id in clip_ids} == {""}
    group = zarr.open_group(tmp_path / "c" / "features.zarr", mode="r")[feature_set.name]
    codes = torch.from_numpy(group["tokens"][0, 1, :70])
    scale = torch.from_numpy(group["tokens_scale"][0, 1, :70])
    plain = restored(codes, scale, spec.torch_dtype)
    assert torch.equal(plain, cache.read(feature_set.name, "tokens", ["v@70"])[0, 1, :70])


def test_fp8_is_another_set_and_refuses_what_is_not_finite(
    tmp_path: Path, fp8_set: Callable[..., FeatureSet]
) -> None:
    assert fp8_set().name != fp8_set(fp8=()).name
    bad = features("v@9", num_tokens=9, dtype=torch.float16)
    bad.arrays["tokens"][1, 2, 3] = float("inf")
    with WriteSession(tmp_path / "c") as session, session.writer(session.resolve(fp8_set())) as writer:
        assert "tokens, layer 5: 1 values" in writer.append([bad])[0].reason
