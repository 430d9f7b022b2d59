"""Intervals against values worked out by hand, against scipy, and against worlds whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats

from thinkjepa.stages.intervals import Clusters, Floats, skewed_quantile, t_quantile


def interval(
    groups: Sequence[int], *parts: Sequence[float] | Floats, videos: Sequence[int] | None = None
) -> tuple[float, float, float]:
    """Mean and ends of parts `(seed, clip)` or `(clip,)`."""
    clusters = Clusters(groups=groups, videos=videos or groups)
    found = clusters.figure([np.atleast_2d(np.array(part, dtype=np.float64)) for part in parts])
    assert found is not None
    mean, low, high = (np.nan if value is None else value for value in found.values())
    return mean, low, high


@pytest.mark.parametrize("freedom", [1.0, 1.3, 2.0, 4.0, 9.5, 49.0, 1234.0])
def test_the_t_quantile_is_scipys(freedom: float) -> None:
    assert t_quantile(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=5e-5)


@pytest.mark.parametrize("num_groups", [2, 12, 200])
def test_one_clip_a_group_and_one_seed_is_students_t(num_groups: int) -> None:
    half = np.random.default_rng(num_groups).gamma(2.0, size=num_groups // 2)
    scores = np.concatenate((half, -half))  # of no skewness
    error = float(scipy.stats.sem(scores))
    expected = scipy.stats.t.interval(0.95, num_groups - 1, loc=scores.mean(), scale=error)
    assert interval(list(range(num_groups)), scores)[1:] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("num_groups", [3, 12, 200])
def test_an_interval_reaches_further_to_the_side_of_the_longer_tail(num_groups: int) -> None:
    """Hall's cubic makes Student's t of both studentized ends."""
    scores = np.random.default_rng(num_groups).exponential(size=num_groups)
    mean, low, high = interval(list(range(num_groups)), scores)
    skewness = float(scipy.stats.skew(scores)) / num_groups**0.5
    studentized = (mean - np.array([low, high])) / float(scipy.stats.sem(scores))
    cubic = studentized + skewness * studentized**2 / 3 + skewness**2 * studentized**3 / 27 + skewness / 6
    quantile = scipy.stats.t.ppf(0.975, num_groups - 1)
    assert cubic == pytest.approx([quantile, -quantile], rel=1e-4)
    assert high - mean > mean - low
    mirrored = interval(list(range(num_groups)), -scores)
    assert mirrored == pytest.approx((-mean, -high, -low))


def test_a_skewness_next_to_none_changes_nothing() -> None:
    for skewness in (0.0, 1e-7, 1.1e-6):
        assert skewed_quantile(2.0, skewness) == pytest.approx(2.0, abs=1e-5)


def test_seeds_alone_are_students_t_of_their_means() -> None:
    """Clips are all alike, so only another choice of seeds could change the mean."""
    by_seed = np.array([1.0, 2.0, 6.0])
    expected = scipy.stats.t.interval(0.95, 2, loc=3.0, scale=float(scipy.stats.sem(by_seed)))
    found = interval(list(range(20)), np.repeat(by_seed[:, None], 20, axis=1))
    assert found == pytest.approx((3.0, *expected), rel=1e-4)


def test_the_reaches_of_groups_and_seeds_add_as_squares() -> None:
    """Effects of groups and seeds without chance meetings: variances and quantiles by hand."""
    groups, seeds = np.arange(10.0), np.array([0.0, 3.0, 4.0])
    parts = np.var(groups, ddof=1) / 10, np.var(seeds, ddof=1) / 3
    quantiles = scipy.stats.t.ppf(0.975, [9, 2])
    margin = (parts[0] * quantiles[0] ** 2 + parts[1] * quantiles[1] ** 2) ** 0.5
    mean, low, high = interval(list(range(10)), seeds[:, None] + groups)
    assert (mean - low, high - mean) == pytest.approx((margin, margin), rel=1e-4)


def test_copies_of_clips_within_their_groups_make_nothing_more_certain() -> None:
    groups, scores = list(range(20)), [float(number % 5) for number in range(20)]
    assert interval(groups * 7, scores * 7) == pytest.approx(interval(groups, scores))


def test_the_mean_is_over_clips_and_large_groups_weigh_more() -> None:
    assert interval([0, 1, 1], [0.0, 4.0, 5.0])[0] == 3.0


def test_equal_scores_have_no_spread_and_one_video_tells_nothing_of_it() -> None:
    assert interval([0, 1, 2, 3], [2.5] * 4) == (2.5, 2.5, 2.5)
    mean, low, high = interval([0, 0, 0], [1.0, 2.0, 3.0])
    assert mean == 2.0
    assert np.isnan([low, high]).all()


def test_videos_stand_in_where_all_clips_are_of_one_group() -> None:
    scores, videos = [1.0, 2.0, 4.0, 5.0], [0, 0, 1, 1]
    assert interval([7] * 4, scores, videos=videos) == interval(videos, scores)


def test_clips_without_a_score_are_left_out_of_that_score_only() -> None:
    assert interval([0, 1, 2, 3], [1.0, np.nan, 5.0, np.nan]) == interval([0, 2], [1.0, 5.0])
    one_seed_lacks = np.array([[1.0, 3.0, 5.0], [1.0, np.nan, 5.0]])
    assert interval([0, 1, 2], one_seed_lacks)[0] == 3.0
    assert Clusters(groups=[0, 1], videos=[0, 1]).figures({"none": [np.full((1, 2), np.nan)]}) == {}


def test_paired_seeds_cancel_what_they_share_and_unpaired_ones_do_not() -> None:
    generator = np.random.default_rng(0)
    clips, seeds = generator.normal(size=30), generator.normal(size=(3, 1))
    one, other = clips + seeds, clips + seeds - 0.1
    groups = list(range(30))
    paired = interval(groups, one - other)
    assert paired == pytest.approx((0.1, 0.1, 0.1))
    mean, low, high = interval(groups, one, -other)
    assert mean == pytest.approx(0.1)
    assert low < 0 < high


def simulated(
    generator: np.random.Generator,
    *,
    groups: int,
    seeds: int,
    effects: dict[str, float],
    skewed: bool = False,
) -> tuple[list[int], Floats]:
    """Scores `(seed, clip)` of mean 0: one to five videos a group, of three clips each.

    Effects of `skewed` groups follow an exponential distribution, else all are normal.
    """
    videos_of = np.repeat(np.arange(groups), generator.integers(1, 6, groups))
    group_of = np.repeat(videos_of, 3)
    videos = np.repeat(np.arange(len(videos_of)), 3)
    of_groups = generator.exponential(size=groups) - 1.0 if skewed else generator.normal(size=groups)
    scores = effects["group"] * of_groups[group_of]
    scores = scores + effects["video"] * generator.normal(size=len(videos_of))[videos]
    scores = scores + effects["clip"] * generator.normal(size=len(videos))
    seed = effects["seed"] * generator.normal(size=(seeds, 1))
    meeting = effects["meeting"] * generator.normal(size=(seeds, groups))[:, group_of]
    return group_of.tolist(), scores + seed + meeting


WORLDS = {
    "groups": {"group": 1.0, "video": 0.5, "clip": 0.3, "seed": 0.02, "meeting": 0.1},
    "seeds": {"group": 0.1, "video": 0.1, "clip": 0.3, "seed": 1.0, "meeting": 0.1},
    "videos": {"group": 0.0, "video": 1.0, "clip": 0.3, "seed": 0.0, "meeting": 0.0},
    "meetings": {"group": 0.1, "video": 0.1, "clip": 0.3, "seed": 0.02, "meeting": 1.0},
    "alike": {"group": 1.0, "video": 0.5, "clip": 0.3, "seed": 0.5, "meeting": 0.3},
    "near": {"group": 0.4, "video": 0.3, "clip": 0.3, "seed": 0.5, "meeting": 0.5},
}


@pytest.mark.soak
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("groups", [10, 20, 50])
def test_intervals_hold_the_truth_in_93_to_98_of_100(groups: int, seeds: int, world: str) -> None:
    """In 4,000 repetitions, so that chance moves a share by about 0.35 of 100.

    Above 97 are only ten groups, and 20 where groups and seeds differ alike (97.7 at most). With common
    degrees of freedom (Satterthwaite) it is 91.1 in the world `near`, with three seeds and 20 groups.
    """
    generator = np.random.default_rng(0)
    repetitions, held = 4_000, 0
    for _ in range(repetitions):
        group_of, scores = simulated(generator, groups=groups, seeds=seeds, effects=WORLDS[world])
        _, low, high = interval(group_of, scores)
        held += low <= 0.0 <= high
    assert 0.93 <= held / repetitions <= 0.98


@pytest.mark.soak
@pytest.mark.parametrize(("world", "seeds"), [("groups", 1), ("groups", 3), ("alike", 3)])
@pytest.mark.parametrize("groups", [10, 20, 50])
def test_intervals_of_skewed_groups_hold_the_truth_in_92_to_98_of_100(
    groups: int, seeds: int, world: str
) -> None:
    """Student's t alone holds it in 88 to 94. One seed tells nothing of others, which differ in `alike`."""
    generator = np.random.default_rng(0)
    repetitions, held = 4_000, 0
    for _ in range(repetitions):
        group_of, scores = simulated(
            generator, groups=groups, seeds=seeds, effects=WORLDS[world], skewed=True
        )
        _, low, high = interval(group_of, scores)
        held += low <= 0.0 <= high
    assert 0.92 <= held / repetitions <= 0.98
