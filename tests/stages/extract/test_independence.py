"""Features of a clip depend on nothing but the clip: not on batches, order or neighbors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from thinkjepa.cache import FeatureCache
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.extract.encoder.base import open_encoder
from thinkjepa.stages.extract.models.weights import find_model
from thinkjepa.stages.extract.run import extract
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings
from thinkjepa.stages.progress import NoProgress

TOLERANCE = 1e-5
"""Of the states' scale, in float32."""

Features = dict[tuple[str, str], Tensor]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number, size in enumerate([(160, 128), (160, 128), (224, 128)]):
        make_video(folder / f"{number}.mp4", num_frames=60 + number, size=size)
    return folder


@pytest.fixture(scope="module")
def features_of(tiny_models: Path) -> Callable[..., Features]:
    """Features of an extraction, by clip and array."""

    def run(folder: Path, cache_dir: Path, *, batch_size: int) -> Features:
        extract(
            folder,
            cache_dir,
            clips=ClipSettings(
                thinker_frames=4, observed_frames=4, future_frames=4, dense_fps=10, stride_s=0.3
            ),
            models=ModelSettings(
                thinker=str(tiny_models / "thinker"), encoder=str(tiny_models / "encoder"), max_new_tokens=4
            ),
            execution=ExecutionSettings(device="cpu", batch_size=batch_size),
            progress=NoProgress(),
        )
        cache = FeatureCache.open(cache_dir)
        return {
            (clip_id, array): cache.read(name, array, [clip_id])[0].nan_to_num(nan=-1.0)
            for name, item in cache.feature_sets.items()
            for array in item.arrays
            for clip_id in cache.index(name).clip_ids.to_pylist()
        }

    return run


def test_another_order_changes_not_one_bit_and_another_batch_size_no_more_than_rounding(
    tmp_path: Path, videos: Path, features_of: Callable[..., Features]
) -> None:
    """Clips are known by their videos' content: with other names they come in another order."""
    reversed_order = tmp_path / "videos"
    reversed_order.mkdir()
    for number in range(3):
        shutil.copy(videos / f"{number}.mp4", reversed_order / f"{9 - number}.mp4")
    plain = features_of(videos, tmp_path / "plain", batch_size=3)
    assert len({clip_id for clip_id, _ in plain}) > 9
    other = features_of(reversed_order, tmp_path / "reversed", batch_size=3)
    assert plain.keys() == other.keys()
    assert all(torch.equal(plain[key], other[key]) for key in plain)
    single = features_of(videos, tmp_path / "single", batch_size=1)
    assert plain.keys() == single.keys()
    for key, states in plain.items():
        states, alone = states.float(), single[key].float()
        assert (states - alone).abs().max() <= TOLERANCE * states.abs().max(), key
    different = {states.numpy().tobytes() for (_, array), states in plain.items() if array == "observed"}
    assert len(different) >= 6, "the control: clips differ"


def test_a_windows_neighbours_change_not_one_bit_of_its_latents(tiny_models: Path) -> None:
    encoder = open_encoder(
        find_model(str(tiny_models / "encoder"), revision="main", role="encoder"),
        dtype="float32",
        device=torch.device("cpu"),
    )
    encoder.load()
    generator = torch.Generator().manual_seed(0)
    ours, one, two = torch.randn(3, 8, 3, 64, 64, generator=generator)
    together = encoder.encode([ours, one, one], batch_size=3)
    changed = encoder.encode([ours, two, one], batch_size=3)
    assert torch.equal(together[0], changed[0])
    assert torch.equal(together[0], encoder.encode([ours], batch_size=3)[0]), "nor how many there are"
    assert not torch.equal(together[1], changed[1])
