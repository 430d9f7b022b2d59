"""Features as dask and xarray arrays hold what the reader reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from thinkjepa.cache import ClipFeatures, FeatureCache, FeatureSet, WriteSession

Build = Callable[..., FeatureSet]
Make = Callable[..., ClipFeatures]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_lazy_arrays_hold_what_the_reader_reads(
    tmp_path: Path, thinker_set: Build, make_features: Make, dtype: str
) -> None:
    feature_set = thinker_set(dtype=dtype, layers=(1, 5, 9), rows=3)
    features = [make_features(feature_set, f"v@{n}", num_tokens=n) for n in (70, 3, 256, 64)]
    with WriteSession(tmp_path) as session, session.writer(session.resolve(feature_set)) as writer:
        assert writer.append(features) == []
    cache = FeatureCache.open(tmp_path)
    ids = cache.index(feature_set.name).clip_ids.to_pylist()
    read = cache.read(feature_set.name, "tokens", ids).float().numpy()
    lazy = cache.dask(feature_set.name, "tokens")
    assert lazy.shape == read.shape
    assert lazy.chunks[0] == (1,) * len(ids)
    assert np.array_equal(lazy.compute(scheduler="synchronous").astype(np.float32), read)
    assert np.array_equal(lazy[1:3, 1, :9].compute(scheduler="synchronous"), read[1:3, 1, :9])
    named = cache.xarray()[feature_set.name]["tokens"]
    assert named.dims == ("clip", "layer", "token", "dim")
    assert np.array_equal(named.sel(clip=ids[2]).to_numpy().astype(np.float32), read[2])
