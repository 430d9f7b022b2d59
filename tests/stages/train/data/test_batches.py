"""Data order is a pure function, and every clip is in it once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from thinkjepa.stages.train.data.batches import batches_in_order, micro_batches, training_batches

IDS = [f"clip{number:03d}" for number in range(50)]


@given(num=st.integers(1, 50), batch_size=st.integers(1, 60), epoch=st.integers(0, 5), seed=st.integers(0, 9))
def test_an_epoch_has_every_clip_once(num: int, batch_size: int, epoch: int, seed: int) -> None:
    batches = training_batches(IDS[:num], batch_size=batch_size, seed=seed, epoch=epoch)
    assert sorted(clip for batch in batches for clip in batch) == IDS[:num]
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert batches == training_batches(IDS[:num], batch_size=batch_size, seed=seed, epoch=epoch)


def test_epochs_and_seeds_differ_in_order() -> None:
    orders = {
        tuple(training_batches(IDS, batch_size=50, seed=seed, epoch=epoch))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


@given(num=st.integers(1, 20), num_processes=st.integers(1, 8), most_clips=st.integers(1, 6))
def test_processes_share_a_batch_without_overlap_or_gap(
    num: int, num_processes: int, most_clips: int
) -> None:
    batch = tuple(IDS[:num])
    shares = [
        micro_batches(batch, process=rank, num_processes=num_processes, most_clips=most_clips)
        for rank in range(num_processes)
    ]
    flat = [share for own in shares for share in own]
    pairs = [pair for share in flat for pair in zip(share.clip_ids, share.weights, strict=True)]
    assert sorted(clip for clip, weight in pairs if weight == 1) == list(batch)
    assert sum(weight for _, weight in pairs) == num
    assert all(1 <= len(share.clip_ids) <= most_clips for share in flat)
    assert len({len(own) for own in shares}) == 1


def test_validation_order_is_the_given_one() -> None:
    assert batches_in_order(IDS[:5], batch_size=2) == [tuple(IDS[:2]), tuple(IDS[2:4]), (IDS[4],)]
