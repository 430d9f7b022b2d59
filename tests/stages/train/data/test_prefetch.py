"""Reading ahead changes neither order nor values, and what goes wrong there is raised where it is used."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch

from thinkjepa.cache import BatchBuffers, FeatureCache
from thinkjepa.stages.train.data.batches import new_buffers, prefetched
from thinkjepa.stages.train.data.features import choose_features
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]
CPU = torch.device("cpu")


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_results_come_in_order_and_stay_valid_until_the_next(ahead: int) -> None:
    def load(number: int, buffers: BatchBuffers) -> torch.Tensor:
        return buffers.tensor(("set", "x"), (3,), torch.float32).fill_(number)

    for number, tensor in enumerate(
        prefetched(range(20), load, buffers=[BatchBuffers() for _ in range(ahead + 1)])
    ):
        assert tensor.tolist() == [number] * 3


def test_memory_is_used_again() -> None:
    places = set()
    for tensor in prefetched(
        range(20), lambda n, buffers: buffers.tensor(("set", "x"), (4,), torch.float16), buffers=new_buffers()
    ):
        places.add(tensor.data_ptr())
    assert len(places) == 3


def test_a_smaller_batch_takes_the_front_of_the_buffer() -> None:
    buffers = BatchBuffers()
    whole = buffers.tensor(("set", "x"), (4, 2), torch.float32)
    part = buffers.tensor(("set", "x"), (3, 2), torch.float32)
    assert part.shape == (3, 2)
    assert part.is_contiguous()
    assert part.data_ptr() == whole.data_ptr()
    assert buffers.tensor(("set", "x"), (4, 2), torch.float16).dtype == torch.float16


def test_a_failed_load_is_raised_in_its_turn() -> None:
    def load(number: int, buffers: BatchBuffers) -> int:
        if number == 2:
            raise ValueError("clip 2 is damaged")
        return number

    seen = []
    with pytest.raises(ValueError, match="clip 2 is damaged"):
        for number in prefetched(range(9), load, buffers=new_buffers()):
            seen.append(number)
    assert seen == [0, 1]


def test_stopping_early_ends_the_thread() -> None:
    loaded: list[int] = []
    with closing(
        prefetched(range(1000), lambda number, buffers: loaded.append(number), buffers=new_buffers())
    ) as results:
        next(results)
    assert len(loaded) < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_prefetched_features_are_the_same_bits(latent_cache: BuildCache) -> None:
    features = choose_features(FeatureCache.open(latent_cache()), TrainSettings())
    ids = features.clips.clip_ids.to_pylist()
    requests = [ids[start : start + 5] for start in range(0, len(ids), 5)]
    for request, stored in zip(
        requests, prefetched(requests, features.stored, buffers=new_buffers()), strict=True
    ):
        batch, expected = features.transformed(stored, CPU), features.batch(request, CPU)
        assert torch.equal(batch.observed, expected.observed)
        assert torch.equal(batch.future, expected.future)
        assert batch.pooled is not None
        assert expected.pooled is not None
        assert torch.equal(batch.pooled, expected.pooled)
