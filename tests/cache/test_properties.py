"""Whatever is written, however it is cut, killed and continued: every way of reading gives it back.

The values are bit patterns of any kind that is finite: subnormal numbers, both zeros, the largest of a dtype.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thinkjepa.cache import (
    ArraySpec,
    BatchBuffers,
    ClipFeatures,
    Codec,
    FeatureCache,
    FeatureSet,
    WriteSession,
    describe_set,
    done_clip_ids,
)

CAPACITY, LAYERS, DIM = 192, (1, 5, 9), 6
SHORT, LONG = 15, int(os.environ.get("THINKJEPA_SOAK_EXAMPLES", "300"))
FP8_RELATIVE, FP8_OF_LARGEST = 2**-4, 2**-10 / 448
"""What docs/cache-format.md promises of a value in 8 bits."""

TreeDigest = Callable[[Path], Mapping[str, str]]

Bits = {"float16": np.uint16, "bfloat16": np.uint16, "float32": np.uint32}
EXPONENT = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000}


@dataclass(frozen=True)
class Written:
    """A run: what is written, in which batches, and after which of them it ends before its time."""

    dtype: str
    codec: Codec
    fp8: bool
    rows_per_shard: int
    lengths: tuple[int, ...]
    batch: int
    stops: Mapping[int, Literal["raise", "kill"]]
    order: tuple[int, ...]
    layers: tuple[int, ...]
    seed: int


@st.composite
def runs(draw: st.DrawFn) -> Written:
    lengths = draw(st.lists(st.sampled_from([1, 2, 63, 64, 65, 128, 191, 192]), min_size=1, max_size=7))
    batch = draw(st.integers(1, 4))
    num_batches = -(-len(lengths) // batch)
    some = st.lists(st.sampled_from(range(len(lengths))), min_size=1, max_size=5)
    return Written(
        dtype=draw(st.sampled_from(sorted(Bits))),
        codec=draw(st.sampled_from(["none", "zstd", "blosc"])),
        fp8=draw(st.booleans()),
        rows_per_shard=draw(st.integers(1, 5)),
        lengths=tuple(lengths),
        batch=batch,
        stops=draw(
            st.dictionaries(st.integers(0, num_batches), st.sampled_from(["raise", "kill"]), max_size=3)
        ),
        order=tuple(draw(some)),
        layers=tuple(draw(st.lists(st.sampled_from(LAYERS), min_size=1, max_size=3, unique=True))),
        seed=draw(st.integers(0, 2**20)),
    )


def thinker_set(run: Written) -> FeatureSet:
    tokens = ArraySpec("tokens", ("layer", "token", "dim"), (3, CAPACITY, DIM), (1, 64, DIM), run.dtype)
    kind = ArraySpec("token_kind", ("token",), (CAPACITY,), (CAPACITY,), "uint8")
    pooled = ArraySpec("pooled", ("layer", "stream", "dim"), (3, 2, DIM), (3, 2, DIM), "float32")
    return describe_set(
        "thinker",
        origin={"layers": list(LAYERS), "dtype": run.dtype, "sampling": {"fingerprint": "t"}},
        source={},
        arrays=(tokens, kind, pooled),
        shard_bytes=run.rows_per_shard,
        typical_clip_bytes=1,
        codec=run.codec,
        fp8_arrays=("tokens",) if run.fp8 else (),
    )


def finite_values(dtype: str, shape: tuple[int, ...], random: np.random.Generator) -> torch.Tensor:
    """Any bits but those of inf and NaN."""
    bits = random.integers(0, np.iinfo(Bits[dtype]).max, shape, dtype=Bits[dtype], endpoint=True)
    special = np.array([0, 1, EXPONENT[dtype] - 1], dtype=Bits[dtype])  # zero, the smallest, the largest
    bits = np.where(random.random(shape) < 0.2, random.choice(special, shape), bits)
    spoilt = (bits & EXPONENT[dtype]) == EXPONENT[dtype]
    bits = np.where(spoilt, bits ^ Bits[dtype](EXPONENT[dtype] & ~(EXPONENT[dtype] >> 1)), bits)
    real = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]
    return torch.from_numpy(bits.view(f"i{bits.itemsize}")).view(real)


def features_of(run: Written) -> list[ClipFeatures]:
    random = np.random.default_rng(run.seed)
    return [
        ClipFeatures(
            clip_id=f"clip{number}@{length}",
            arrays={
                "tokens": finite_values(run.dtype, (3, length, DIM), random),
                "token_kind": torch.from_numpy(random.integers(1, 5, length, dtype=np.uint8)),
                "pooled": finite_values("float32", (3, 2, DIM), random),
            },
            token_count=length,
        )
        for number, length in enumerate(run.lengths)
    ]


class StoppedError(Exception):
    """The run ends here."""


def write(root: Path, feature_set: FeatureSet, batches: Sequence[Sequence[ClipFeatures]], stop: int) -> None:
    """Write what is not there yet, and stop in front of batch `stop`."""
    with WriteSession(root) as session, session.writer(session.resolve(feature_set)) as writer:
        done = done_clip_ids(writer)
        for number, batch in enumerate(batches):
            if number == stop:
                raise StoppedError
            if not {item.clip_id for item in batch} <= done:
                assert writer.append(batch) == []
        if stop == len(batches):
            raise StoppedError


def write_and_die(
    root: Path, feature_set: FeatureSet, batches: Sequence[Sequence[ClipFeatures]], stop: int
) -> None:
    """The same in a forked process that is killed there, so that nothing is closed or unlocked by hand."""
    child = os.fork()
    if child == 0:
        try:
            with WriteSession(root) as session, session.writer(session.resolve(feature_set)) as writer:
                done = done_clip_ids(writer)
                for batch in batches[:stop]:
                    if not {item.clip_id for item in batch} <= done:
                        writer.append(batch)
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def bits(values: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Bytes, so that -0.0 and 0.0 differ."""
    return values.contiguous().view(torch.uint8).numpy()


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.shape == wanted.shape and np.array_equal(bits(found), bits(wanted))


def full(values: torch.Tensor, spec: ArraySpec, tokens: int) -> torch.Tensor:
    """A clip's values with zeros after its end, `tokens` long."""
    if "token" not in spec.dims:
        return values
    axis = spec.dims.index("token")
    shape = [tokens if position == axis else size for position, size in enumerate(values.shape)]
    padded = torch.zeros(shape, dtype=values.dtype)
    padded.narrow(axis, 0, values.shape[axis]).copy_(values)
    return padded


def check_every_way_of_reading(root: Path, run: Written, written: Sequence[ClipFeatures]) -> None:
    cache = FeatureCache.open(root)
    feature_set = next(iter(cache.feature_sets.values()))
    name, chosen = feature_set.name, [written[position] for position in run.order]
    ids = [item.clip_id for item in chosen]
    group = zarr.open_group(root / "features.zarr", mode="r")[name]
    rows = cache.index(name).locate_all(ids)
    for array, spec in feature_set.given_arrays.items():
        exact = [full(item.arrays[array], spec, CAPACITY) for item in chosen]
        stored = torch.from_numpy(np.stack([np.asarray(group[array][int(row)]) for row in rows]))
        if spec.encoding == "fp8":
            scale = np.stack([np.asarray(group[array + "_scale"][int(row)]) for row in rows])
            exact = list(from_float8(stored.numpy(), scale, spec.torch_dtype))
            for item, approximate in zip(chosen, exact, strict=True):
                check_float8_error(item.arrays[array], approximate[:, : item.token_count])
        else:
            assert all(same(a, b) for a, b in zip(stored.view(spec.torch_dtype), exact, strict=True))
        read = cache.read(name, array, ids)
        assert all(same(a, b) for a, b in zip(read, exact, strict=True)), array
        out = torch.full(read.shape, 7, dtype=read.dtype)
        assert cache.read(name, array, ids, out=out) is out
        assert same(out, read)
        check_batches(cache, name, array, run, ids, exact)
        check_lazy(cache, name, array, exact, ids)


def check_batches(
    cache: FeatureCache, name: str, array: str, run: Written, ids: list[str], exact: Sequence[torch.Tensor]
) -> None:
    """As training reads: into memory that has been used before, no further than the longest clip."""
    spec, buffers = cache.feature_sets[name].arrays[array], BatchBuffers(pinned=False)
    longest = max(run.lengths[position] for position in run.order)
    wanted = torch.stack(list(exact))
    if "token" in spec.dims:
        wanted = wanted.narrow(1 + spec.dims.index("token"), 0, longest)
    for layers in (None, run.layers):
        batch = cache.read(name, array, ids, layers=layers, tokens=longest, out=buffers)
        positions = [LAYERS.index(layer) for layer in layers or LAYERS]
        assert same(batch, wanted[:, positions] if "layer" in spec.dims else wanted)
        if "token" in spec.dims:
            counts = cache.index(name).count_tokens(ids).tolist()
            assert counts == [run.lengths[position] for position in run.order]


def check_lazy(
    cache: FeatureCache, name: str, array: str, exact: Sequence[torch.Tensor], ids: list[str]
) -> None:
    """dask and xarray, a clip by its position and its id. Values of bfloat16 come as float32."""
    position = cache.index(name).clip_ids.to_pylist().index(ids[0])
    wanted = exact[0].float() if exact[0].dtype == torch.bfloat16 else exact[0]
    by_position = cache.dask(name, array)[position].compute(scheduler="synchronous")
    by_id = cache.xarray()[name][array].sel(clip=ids[0]).to_numpy()
    assert same(torch.from_numpy(by_position), wanted)
    assert same(torch.from_numpy(by_id), wanted)


def from_float8(codes: npt.NDArray[np.uint8], scale: npt.NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    """Values of e4m3 by its definition, times the scale in float32."""
    exponent, mantissa = (codes >> 3 & 15).astype(np.int32), (codes & 7).astype(np.float32)
    size = np.where(exponent > 0, (8 + mantissa) * np.exp2(exponent - 10.0), mantissa * np.exp2(-9.0))
    numbers = np.where(codes & 128, -size, size).astype(np.float32)
    return torch.from_numpy(numbers * scale[..., None]).to(dtype)


def check_float8_error(exact: torch.Tensor, approximate: torch.Tensor) -> None:
    assert torch.isfinite(approximate).all()
    limits = torch.finfo(exact.dtype)
    numbers = exact.double()
    largest = numbers.abs().amax(dim=-1, keepdim=True)
    rounding = limits.eps * numbers.abs() + limits.smallest_normal  # of the result to its dtype
    allowed = torch.maximum(FP8_RELATIVE * numbers.abs(), FP8_OF_LARGEST * largest) * (1 + 1e-6) + rounding
    assert ((approximate.double() - numbers).abs() <= allowed).all()


def check_run(folder: Path, run: Written, tree_digest: TreeDigest) -> None:
    feature_set, written = thinker_set(run), features_of(run)
    batches = [written[start : start + run.batch] for start in range(0, len(written), run.batch)]
    write(folder / "whole", feature_set, batches, stop=-1)
    for stop, how in sorted(run.stops.items()):
        if how == "kill":
            write_and_die(folder / "cut", feature_set, batches, stop)
        else:
            with pytest.raises(StoppedError):
                write(folder / "cut", feature_set, batches, stop)
    write(folder / "cut", feature_set, batches, stop=-1)
    assert tree_digest(folder / "cut") == tree_digest(folder / "whole")
    check_every_way_of_reading(folder / "cut", run, written)


LIMITS: dict[str, Any] = {
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


@settings(max_examples=SHORT, **LIMITS)
@given(run=runs())
def test_what_is_read_equals_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, tree_digest: TreeDigest, run: Written
) -> None:
    check_run(tmp_path_factory.mktemp("run"), run, tree_digest)


@pytest.mark.soak
@settings(max_examples=LONG, **LIMITS)
@given(run=runs())
def test_what_is_read_equals_what_was_written_many_times(
    tmp_path_factory: pytest.TempPathFactory, tree_digest: TreeDigest, run: Written
) -> None:
    check_run(tmp_path_factory.mktemp("run"), run, tree_digest)
