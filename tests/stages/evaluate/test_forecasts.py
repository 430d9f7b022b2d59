"""Forecasts without training: velocities by hand and by numpy, whose thinker states are given instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thinkjepa.cache import ClipRow, FeatureCache
from thinkjepa.stages.evaluate.motion import constant_velocity, damped_velocity
from thinkjepa.stages.evaluate.partners import PERMUTATIONS, bins_by_history, permutations_of
from thinkjepa.stages.train.data.poses import ObservedPoses


def along_x(*metres: float) -> np.ndarray:
    """One joint on the x axis, `(frame, 1, 3)`."""
    positions = np.zeros((len(metres), 1, 3))
    positions[:, 0, 0] = metres
    return positions


def poses_of(observed: np.ndarray, seen: np.ndarray, times_s: Sequence[float]) -> ObservedPoses:
    """The observed joints of one clip."""
    return ObservedPoses(*(torch.tensor(np.array(item))[None].double() for item in (observed, seen, times_s)))


def velocity_x(
    observed: np.ndarray, seen: list[bool], times_s: list[float], ahead_s: list[float]
) -> list[float]:
    moved = constant_velocity(poses_of(observed, np.array(seen)[:, None], times_s), torch.tensor([ahead_s]))
    return moved[0, :, 0, 0].tolist()


def test_a_joint_goes_on_by_the_slope_of_the_whole_window() -> None:
    """Deviations -1, 0 and 1 from the middle give a slope of (2.0 - 0.5) / 0.2 = 7.5 m/s."""
    found = velocity_x(along_x(0.5, 1.0, 2.0), [True] * 3, [-0.2, -0.1, 0.0], [0.1, 0.2])
    assert found == pytest.approx([2.75, 3.5])


def test_real_times_decide_and_not_frame_numbers() -> None:
    found = velocity_x(along_x(0.0, 1.0), [True] * 2, [-0.5, 0.0], [0.1, 1.0])
    assert found == pytest.approx([1.2, 3.0])


def test_frames_where_the_joint_was_not_seen_are_skipped() -> None:
    observed = along_x(1.0, 77.0, 2.0, 77.0)
    found = velocity_x(observed, [True, False, True, False], [-0.3, -0.2, -0.1, 0.0], [0.1])
    assert found == pytest.approx([3.0])


def test_a_frame_that_was_sampled_twice_does_no_harm() -> None:
    """At low frame rates a frame may stand for two sampling times: nothing moved in no time."""
    found = velocity_x(along_x(1.0, 2.0, 2.0), [True] * 3, [-0.1, 0.0, 0.0], [0.1])
    assert found == pytest.approx([3.0])
    assert velocity_x(along_x(1.0, 1.5), [True] * 2, [0.0, 0.0], [0.1]) == [1.5]


def test_a_joint_that_was_seen_once_stays() -> None:
    found = velocity_x(along_x(5.0, 1.0, 7.0), [False, True, False], [-0.2, -0.1, 0.0], [0.1, 9.0])
    assert found == [1.0, 1.0]


@given(st.integers(0, 1000))
def test_velocities_are_those_of_numpy_polyfit_from_the_last_known_position(seed: int) -> None:
    rng = np.random.default_rng(seed)
    observed, seen = rng.normal(size=(6, 3, 3)), rng.random((6, 3)) > 0.4
    seen[rng.permutation(6)[:2]] = True  # two times at least
    times_s, ahead_s = np.sort(rng.uniform(-1, 0, 6)), np.array([0.1, 0.4])
    poses, ahead = poses_of(observed, seen, times_s), torch.from_numpy(ahead_s)[None]
    found, damped = constant_velocity(poses, ahead)[0], damped_velocity(poses, ahead, damping_s=0.3)[0]
    for joint in range(3):
        known = seen[:, joint]
        slope = np.polyfit(times_s[known], observed[known, joint], 1)[0]
        last_m, last_s = observed[known, joint][-1], times_s[known][-1]
        elapsed_s = (ahead_s - last_s)[:, None]
        np.testing.assert_allclose(found[:, joint], last_m + elapsed_s * slope, atol=1e-9)
        distance = 0.3 * (1 - np.exp(-elapsed_s / 0.3)) * slope
        np.testing.assert_allclose(damped[:, joint], last_m + distance, atol=1e-9)


def test_a_velocity_that_is_hardly_damped_is_constant() -> None:
    poses = poses_of(along_x(0.5, 1.0, 2.0), np.ones((3, 1)), [-0.2, -0.1, 0.0])
    ahead_s = torch.tensor([[0.1, 2.0]])
    torch.testing.assert_close(
        damped_velocity(poses, ahead_s, damping_s=1e9), constant_velocity(poses, ahead_s)
    )


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
def test_partners_are_derangements_across_videos(clip: ClipRow, sizes: list[int]) -> None:
    """All clips have the same history here, whatever their split."""
    clips = [
        replace(clip, clip_id=f"{chr(97 + video) * 16}@{split}", video_digest=chr(97 + video) * 64)
        for video, size in enumerate(sizes)
        for split in range(size)
    ]
    found = permutations_of(clips)
    if len(clips) == 1:
        assert found == []
        return
    for partners in found:
        assert sorted(partners) == sorted(partners.values()) == sorted(item.clip_id for item in clips)
        assert all(one != other for one, other in partners.items())
        if 2 * max(sizes) <= len(clips):
            assert all(one[:16] != other[:16] for one, other in partners.items())


def test_partners_have_as_much_history_and_differ_from_one_permutation_to_the_next(clip: ClipRow) -> None:
    """12 videos with three splits each: every partner is of another video and the very same moment."""
    clips = [
        replace(
            clip,
            clip_id=f"{video:016d}@{split}",
            video_digest=f"{video:064d}",
            observed_times_s=(0.6 + split, 0.7 + split),
        )
        for video in range(12)
        for split in range(3)
    ]
    found = permutations_of(clips)
    assert len({tuple(sorted(partners.items())) for partners in found}) == len(found) == PERMUTATIONS
    for partners in found:
        assert all(one[-1] == other[-1] and one[:16] != other[:16] for one, other in partners.items())


def test_bins_of_few_clips_join_their_neighbours(clip: ClipRow) -> None:
    """8 clips at 0 s, one each at 1 to 9 s: a bin of the first, one of the next eight with the last."""
    earlier = [0.0] * 8 + [float(second) for second in range(1, 10)]
    clips = [
        replace(
            clip,
            clip_id=f"{number:016d}@8",
            video_digest=f"{number:064d}",
            observed_times_s=(second, second + 0.1),
        )
        for number, second in enumerate(earlier)
    ]
    bins = bins_by_history(clips[::-1])
    assert [[item.observed_times_s[0] for item in some] for some in bins] == [earlier[:8], earlier[8:]]


def test_partners_do_not_depend_on_the_order_of_clips(latent_cache: Callable[..., Path]) -> None:
    clips = list(FeatureCache.open(latent_cache()).select())
    assert permutations_of(clips) == permutations_of(clips[::-1])
