"""The protocol of a frozen model, kept by thinker and encoder alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from thinkjepa.cache import RAGGED, ClipRow, Kind
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.extract.models.pair import FrozenModel, FrozenModels, Storing
from thinkjepa.stages.extract.settings import ModelSettings

CLIPS = ClipSettings(thinker_frames=4, observed_frames=4, future_frames=4, dense_fps=10)
CLIP = ClipRow(
    clip_id=f"{0:016x}@4",
    video="v.mp4",
    video_digest="0" * 64,
    thinker_sampling="",
    dense_sampling="",
    split_frame=4,
    split_time_s=0.4,
    thinker_frames=(0, 1, 2, 3),
    thinker_times_s=(0.0, 0.1, 0.2, 0.3),
    observed_frames=(0, 1, 2, 3),
    observed_times_s=(0.0, 0.1, 0.2, 0.3),
    future_frames=((4, 5, 6, 7),),
    future_times_s=((0.4, 0.5, 0.6, 0.7),),
)


@pytest.fixture(scope="module")
def frozen(tiny_models: Path) -> FrozenModels:
    settings = ModelSettings(
        thinker=str(tiny_models / "thinker"), encoder=str(tiny_models / "encoder"), max_new_tokens=4
    )
    return FrozenModels.find(settings, device="cpu")


@pytest.fixture(params=["thinker", "encoder"])
def model(request: pytest.FixtureRequest, frozen: FrozenModels) -> FrozenModel:
    return frozen.by_kind[request.param]


def test_features_of_prepared_windows_fill_the_arrays_that_were_described(model: FrozenModel) -> None:
    described = {spec.name: spec for spec in model.arrays(CLIPS)}
    model.load()
    video = np.random.default_rng(0).integers(0, 256, (8, 96, 128, 3), dtype=np.uint8)
    windows = [model.preprocess(video[list(window)]) for window in model.windows(CLIP)]
    (features,) = model.run([(CLIP, model.prepare(CLIP, windows, frame_px=(128, 96)))], batch_size=2)
    assert features.clip_id == CLIP.clip_id
    assert features.arrays.keys() == described.keys()
    for name, spec in described.items():
        values = torch.as_tensor(features.arrays[name])
        assert values.dtype == getattr(torch, spec.dtype)
        for dim, size, capacity in zip(spec.dims, values.shape, spec.shape, strict=True):
            assert size <= capacity if dim in RAGGED else size == capacity


def test_sets_are_described_without_weights_and_hold_equally_many_whole_batches(
    frozen: FrozenModels,
) -> None:
    sets = frozen.sets(CLIPS, Storing(shard_mb=1), batch_size=4)
    kinds: tuple[Kind, ...] = ("thinker", "encoder")
    assert tuple(sets) == kinds == tuple(item.kind for item in sets.values())
    rows = {item.rows_per_shard for item in sets.values()}
    assert len(rows) == 1
    assert rows.pop() % 4 == 0
