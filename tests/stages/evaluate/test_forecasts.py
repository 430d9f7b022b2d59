"""Forecasts without training: constant velocity by hand, and whose thinker states a clip is given instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkjepa.cache import ClipRow, FeatureCache
from thinkjepa.stages.evaluate.baselines import constant_velocity, partners_of


def along_x(*metres: float) -> np.ndarray:
    """One joint on the x axis, `(frame, 1, 3)`."""
    positions = np.zeros((len(metres), 1, 3), dtype=np.float32)
    positions[:, 0, 0] = metres
    return positions


def velocity_x(
    observed: np.ndarray, seen: list[bool], times_s: list[float], ahead_s: list[float]
) -> list[float]:
    moved = constant_velocity(
        observed, np.array(seen)[:, None], observed_times_s=times_s, future_times_s=ahead_s
    )
    return moved[:, 0, 0].tolist()


def test_a_joint_goes_on_as_between_the_last_two_frames() -> None:
    found = velocity_x(along_x(9.0, 1.0, 1.5), [True] * 3, [0.0, 0.1, 0.2], [0.3, 0.4])
    assert found == pytest.approx([2.0, 2.5])


def test_real_times_decide_and_not_frame_numbers() -> None:
    found = velocity_x(along_x(0.0, 1.0), [True] * 2, [0.0, 0.5], [0.6, 1.5])
    assert found == pytest.approx([1.2, 3.0])


def test_frames_where_the_joint_was_not_seen_are_skipped() -> None:
    observed = along_x(1.0, 77.0, 2.0, 77.0)
    found = velocity_x(observed, [True, False, True, False], [0.0, 0.1, 0.2, 0.3], [0.4])
    assert found == pytest.approx([3.0])


def test_a_frame_that_was_sampled_twice_is_one_frame() -> None:
    """At low frame rates a frame may stand for two sampling times: nothing moved in no time."""
    found = velocity_x(along_x(1.0, 2.0, 2.0), [True] * 3, [0.0, 0.1, 0.1], [0.2])
    assert found == pytest.approx([3.0])


def test_a_joint_that_was_seen_once_stays() -> None:
    found = velocity_x(along_x(5.0, 1.0, 7.0), [False, True, False], [0.0, 0.1, 0.2], [0.3, 9.0])
    assert found == [1.0, 1.0]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipRow:
    digest = "a" * 64
    return ClipRow(
        clip_id=f"{digest[:16]}@8",
        video="a.mp4",
        video_digest=digest,
        thinker_sampling="sparse",
        dense_sampling="dense",
        split_frame=8,
        split_time_s=0.8,
        thinker_frames=(0,),
        thinker_times_s=(0.0,),
        observed_frames=(6, 7),
        observed_times_s=(0.6, 0.7),
        future_frames=((8, 9),),
        future_times_s=((0.8, 0.9),),
    )


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_partners_are_a_derangement_across_videos(clip: ClipRow, sizes: list[int]) -> None:
    clips = [
        replace(clip, clip_id=f"{chr(97 + video) * 16}@{split}", video_digest=chr(97 + video) * 64)
        for video, size in enumerate(sizes)
        for split in range(size)
    ]
    partners = partners_of(clips)
    if len(clips) == 1:
        assert partners == {}
        return
    assert sorted(partners) == sorted(partners.values()) == sorted(item.clip_id for item in clips)
    assert all(one != other for one, other in partners.items())
    if 2 * max(sizes) <= len(clips):
        assert all(one[:16] != other[:16] for one, other in partners.items())


def test_partners_do_not_depend_on_the_order_of_clips(latent_cache: Callable[..., Path]) -> None:
    clips = list(FeatureCache.open(latent_cache()).select())
    assert partners_of(clips) == partners_of(clips[::-1])
