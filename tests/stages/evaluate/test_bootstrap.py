"""Intervals against values worked out by hand, and against scipy's bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from thinkjepa.stages.evaluate.scores import Intervals, VideoBootstrap


def one_column(videos: list[int], scores: list[float]) -> tuple[float, float, float]:
    found = VideoBootstrap(videos).intervals(np.array(scores)[:, None])
    return float(found.mean[0]), float(found.low[0]), float(found.high[0])


def test_two_videos_reach_from_the_one_to_the_other() -> None:
    """Means of draws are 0, 1/2 and 1 with chances 1/4, 1/2, 1/4: both tails hold more than 2.5 %."""
    assert one_column([0, 1], [0.0, 1.0]) == (0.5, 0.0, 1.0)


def test_twenty_coins_give_the_percentiles_of_the_binomial_distribution() -> None:
    """P(at most 5 of 20) = 0.0207 and P(at most 6) = 0.0577: the 2.5 % quantile is 6 of 20."""
    assert one_column(list(range(20)), [0.0, 1.0] * 10) == pytest.approx((0.5, 0.3, 0.7))


def test_copies_of_clips_within_their_videos_make_nothing_more_certain() -> None:
    videos, scores = list(range(20)), [float(number % 5) for number in range(20)]
    assert one_column(videos * 7, scores * 7) == pytest.approx(one_column(videos, scores))


def test_the_mean_is_over_clips_and_long_videos_weigh_more() -> None:
    """Draws of both videos in either order have mean 9/3, of one twice 0 or 9/2."""
    mean, low, high = one_column([0, 1, 1], [0.0, 4.0, 5.0])
    assert (mean, low, high) == (3.0, 0.0, 4.5)


def test_equal_scores_have_no_spread_and_one_video_tells_nothing_of_it() -> None:
    assert one_column([0, 1, 2, 3], [2.5] * 4) == (2.5, 2.5, 2.5)
    mean, low, high = one_column([0, 0, 0], [1.0, 2.0, 3.0])
    assert mean == 2.0
    assert np.isnan([low, high]).all()


def test_clips_without_a_score_are_left_out_of_that_score_only() -> None:
    scores = np.array([[1.0, 1.0], [3.0, np.nan], [5.0, 5.0], [7.0, np.nan]])
    found = VideoBootstrap([0, 1, 2, 3]).intervals(scores)
    assert found.mean.tolist() == [4.0, 3.0]
    assert (found.low[1], found.high[1]) == (1.0, 5.0)


def test_columns_share_their_draws_so_that_differences_are_paired() -> None:
    """Scores that differ by the same on every clip have intervals that are shifted by it, exactly."""
    scores = np.random.default_rng(0).normal(size=50)
    found = VideoBootstrap(list(range(50))).intervals(np.stack((scores, scores + 8), axis=1))
    assert found.low[1] - found.low[0] == pytest.approx(8)
    assert found.high[1] - found.high[0] == pytest.approx(8)


@pytest.mark.parametrize("num_videos", [12, 200])
def test_one_clip_a_video_agrees_with_scipy(num_videos: int) -> None:
    """To a tenth of the interval: both draw at random, and 2,000 draws leave an end about 3 % of it apart."""
    scores = np.random.default_rng(num_videos).gamma(2.0, size=num_videos)
    ours = VideoBootstrap(list(range(num_videos))).intervals(scores[:, None])
    theirs = scipy.stats.bootstrap(
        (scores,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low[0] == pytest.approx(theirs.low, abs=0.1 * width)
    assert ours.high[0] == pytest.approx(theirs.high, abs=0.1 * width)


def test_intervals_are_the_same_every_time() -> None:
    scores = np.random.default_rng(0).normal(size=(30, 2))
    first, second = (VideoBootstrap(list(range(30))).intervals(scores) for _ in range(2))
    assert isinstance(first, Intervals)
    np.testing.assert_array_equal(first.low, second.low)
    np.testing.assert_array_equal(first.high, second.high)
