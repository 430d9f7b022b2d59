"""Several runs side by side, on scores that are worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.compared.comparison import compare
from thinkjepa.stages.evaluate.compared.groups import EvaluatedRun

AddRun = Callable[..., EvaluatedRun]


def entry_of(comparison: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in comparison["entries"] if entry["name"] == name)


def difference_of(comparison: dict[str, Any], a: str, b: str) -> dict[str, Any]:
    return next(item for item in comparison["differences"] if (item["a"], item["b"]) == (a, b))


def test_seeds_are_averaged_clip_by_clip(add_run: AddRun) -> None:
    """Variances by hand: 0.0025 of two groups, and 0.0225 less 0.0025 of two seeds."""
    found = compare([add_run("jepa", 1, [0.3, 0.5]), add_run("jepa", 0, [0.1, 0.1])])
    assert found["groups"] == [
        {
            "name": "jepa",
            "variant": "jepa",
            "control": False,
            "seeds": [0, 1],
            "runs": ["jepa-0", "jepa-1"],
        }
    ]
    entry = entry_of(found, "jepa")
    assert entry["num_seeds"] == 2
    ade = entry["metrics"]["ade_m"]
    margin = scipy.stats.t.ppf(0.975, 1) * 0.15  # either part has one degree of freedom
    expected = (0.25, 0.25 - margin, 0.25 + margin)
    assert (ade["mean"], ade["low"], ade["high"]) == pytest.approx(expected, rel=1e-4)
    assert entry["seed_std"]["ade_m"] == pytest.approx(np.std([0.1, 0.4], ddof=1))


def test_errors_of_single_joints_are_averaged_over_seeds(add_run: AddRun) -> None:
    """Those of a baseline are the first run's, as all its figures. None are of a part of the clips."""
    curves = [
        {
            "model": {"rightHand": [0.1, None], "leftHand": [0.3, 0.5]},
            "constant_pose": {"rightHand": [1.0, 2.0]},
        },
        {
            "model": {"rightHand": [0.3, None], "leftHand": [0.1, 0.2]},
            "constant_pose": {"rightHand": [1.0, 2.0]},
        },
    ]
    runs = [add_run("jepa", seed, [0.1, 0.2], by_joint=own) for seed, own in enumerate(curves)]
    found = compare(runs)
    joints = entry_of(found, "jepa")["ade_m_by_joint"]
    assert joints == {"rightHand": [pytest.approx(0.2), None], "leftHand": pytest.approx([0.2, 0.35])}
    assert entry_of(found, "constant pose")["ade_m_by_joint"] == {"rightHand": [1.0, 2.0]}
    without = add_run("jepa", 2, [0.1, 0.2])
    assert "ade_m_by_joint" not in entry_of(compare([*runs, without]), "jepa")
    fewer = add_run("vlm", 0, [0.1])
    assert "ade_m_by_joint" not in entry_of(compare([*runs, fewer]), "jepa")


def test_best_of_seeds_takes_each_clips_best_seed(add_run: AddRun) -> None:
    """Clip by clip the better of two: (0.1 + 0.2) / 2, where no seed by itself has less than 0.25."""
    metrics = entry_of(compare([add_run("jepa", 0, [0.2, 0.8]), add_run("jepa", 1, [0.6, 0.4])]), "jepa")[
        "metrics"
    ]
    assert metrics["keypoint_m"]["mean"] == pytest.approx(0.25)
    assert metrics["keypoint_best_seed_m"]["mean"] == pytest.approx(0.15)
    alone = entry_of(compare([add_run("jepa", 0, [0.2, 0.8])]), "jepa")["metrics"]
    assert "keypoint_best_seed_m" not in alone


def test_differences_are_paired_by_clip(add_run: AddRun) -> None:
    """Scores vary by 0.8 between clips, the difference not at all, so its interval has no width."""
    scores = np.array([0.1, 0.9, 0.5, 0.3])
    found = compare([add_run("jepa", 0, scores), add_run("thinkjepa", 0, scores - 0.05)])
    ade = difference_of(found, "thinkjepa", "jepa")["metrics"]["ade_m"]
    assert (ade["mean"], ade["low"], ade["high"]) == pytest.approx((-0.05, -0.05, -0.05))
    wide = entry_of(found, "jepa")["metrics"]["ade_m"]
    assert wide["high"] - wide["low"] > 0.2


def test_clips_of_one_group_make_an_interval_no_narrower(add_run: AddRun) -> None:
    """40 clips of 4 groups, alike within each: as wide as the 4 by themselves, and no star from them."""
    scores = np.array([0.1, 0.3, 0.5, 0.7])
    four = compare([add_run("jepa", 0, scores)])
    many = compare([add_run("vlm", 0, np.tile(scores, 10), groups=list("abcd") * 10)])
    assert (many["num_clips"], many["num_groups"]) == (40, 4)
    ends = [entry_of(found, name)["metrics"]["ade_m"] for found, name in ((four, "jepa"), (many, "vlm"))]
    assert ends[1] == pytest.approx(ends[0])


def test_seeds_that_disagree_widen_a_difference(add_run: AddRun) -> None:
    """Every clip of every seed differs from jepa's by the same, but the seeds by 0.1, 0.2 and 0.6."""
    scores = np.linspace(0.1, 0.9, 20)
    runs = [add_run("jepa", seed, scores) for seed in range(3)]
    runs += [add_run("thinkjepa", seed, scores - shift) for seed, shift in enumerate((0.1, 0.2, 0.6))]
    ade = difference_of(compare(runs), "thinkjepa", "jepa")["metrics"]["ade_m"]
    expected = scipy.stats.t.interval(0.95, 2, loc=-0.3, scale=scipy.stats.sem([0.1, 0.2, 0.6]))
    assert (ade["low"], ade["high"]) == pytest.approx(expected, rel=1e-4)


def test_seeds_of_unlike_numbers_are_not_paired(add_run: AddRun) -> None:
    scores = np.linspace(0.1, 0.9, 20)
    runs = [add_run("jepa", seed, scores + 0.1 * seed) for seed in range(4)]
    runs += [add_run("thinkjepa", seed, scores + 0.1 * seed) for seed in range(3)]
    ade = difference_of(compare(runs), "thinkjepa", "jepa")["metrics"]["ade_m"]
    variances = np.var(0.1 * np.arange(4), ddof=1) / 4, np.var(0.1 * np.arange(3), ddof=1) / 3
    quantiles = scipy.stats.t.ppf(0.975, [3, 2])
    margin = (variances[0] * quantiles[0] ** 2 + variances[1] * quantiles[1] ** 2) ** 0.5
    assert (ade["mean"], ade["high"]) == pytest.approx((-0.05, -0.05 + margin), rel=1e-4)


def test_a_model_is_compared_with_what_it_has_to_beat(add_run: AddRun) -> None:
    found = compare([add_run("jepa", 0, [0.1, 0.3])])
    assert entry_of(found, "constant pose")["metrics"]["ade_m"]["mean"] == 0.5
    assert difference_of(found, "jepa", "constant pose")["metrics"]["ade_m"]["mean"] == pytest.approx(-0.3)


def test_curves_over_the_horizon_have_intervals(add_run: AddRun) -> None:
    found = compare([add_run("jepa", 0, [0.2, 0.4])])
    first, second = (step["ade_m"] for step in entry_of(found, "jepa")["horizon"])
    margin = scipy.stats.t.ppf(0.975, 1) * 0.05
    assert (first["mean"], first["low"]) == pytest.approx((0.15, 0.15 - margin), rel=1e-4)
    assert second["mean"] == pytest.approx(0.45)
    assert [step["seconds"] for step in found["horizon"]] == pytest.approx([0.1, 0.3])


def test_only_clips_of_all_runs_count_in_any_order(add_run: AddRun) -> None:
    one = add_run("jepa", 0, [0.1, 0.2, 0.9], clips=["a@1", "b@1", "x@1"])
    other = add_run("vlm", 0, [0.4, 0.3], clips=["b@1", "a@1"])
    found = compare([one, other])
    assert (found["num_clips"], found["num_clips_left_out"]) == (2, 1)
    assert entry_of(found, "jepa")["metrics"]["ade_m"]["mean"] == pytest.approx(0.15)
    assert difference_of(found, "jepa", "vlm")["metrics"]["ade_m"]["low"] == pytest.approx(-0.2)


def test_a_clip_without_a_score_is_in_no_mean(add_run: AddRun) -> None:
    found = compare([add_run("jepa", 0, [0.1, np.nan, 0.3])])
    assert entry_of(found, "jepa")["metrics"]["ade_m"]["mean"] == pytest.approx(0.2)


def test_groups_are_told_apart_by_the_settings_that_differ(add_run: AddRun) -> None:
    found = compare(
        [
            add_run("jepa", 0, [0.1, 0.2]),
            add_run("jepa", 0, [0.1, 0.2], epochs=9),
            add_run("vlm", 0, [1, 1]),
        ]
    )
    assert [group["name"] for group in found["groups"]] == ["jepa (epochs 3)", "jepa (epochs 9)", "vlm"]


def test_the_best_of_unequal_numbers_of_seeds_is_not_compared(add_run: AddRun) -> None:
    found = compare(
        [add_run("jepa", 0, [0.1, 0.2]), add_run("jepa", 1, [0.1, 0.2]), add_run("vlm", 0, [0.2, 0.2])]
    )
    assert "keypoint_best_seed_m" not in difference_of(found, "jepa", "vlm")["metrics"]


def test_runs_that_cannot_be_compared_are_refused_by_name(add_run: AddRun) -> None:
    one = add_run("jepa", 0, [0.1, 0.2])
    again = EvaluatedRun("copy", one.table)
    with pytest.raises(StageError, match="'jepa-0' and 'copy' have the same settings and seed 0"):
        compare([one, again])
    other_split = {"rule": {"group_by": "auto", "split_seed": 7}, "grouping": "video"}
    with pytest.raises(
        StageError, match=r"'jepa-0' and 'vlm-0' cannot be compared.* split_seed 0 .*split_seed 7"
    ):
        compare([one, add_run("vlm", 0, [0.1, 0.2], division=other_split)])
    with pytest.raises(StageError, match="'jepa-0', 'vlm-1' have no test clip in common"):
        compare([one, add_run("vlm", 1, [0.1], clips=["z@1"])])
    with pytest.raises(StageError, match="predict 1 and 2 joints"):
        compare([one, add_run("vlm", 2, [0.1, 0.2], joints=("rightHand", "leftHand"))])
    with pytest.raises(StageError, match="labels changed between the evaluations of 'jepa-0' and 'vlm-3'"):
        compare([one, add_run("vlm", 3, [0.1, 0.2], counted=9)])
    with pytest.raises(StageError, match=r"other confidences \(--min-confidence 0 and 0.5\)"):
        compare([one, add_run("vlm", 3, [0.1, 0.2], counted=9, min_confidence=0.5)])
    with pytest.raises(StageError, match="'jepa-0' and 'vlm-4' predict other moments"):
        compare([one, add_run("vlm", 4, [0.1, 0.2], horizon_s=(0.05, 0.15))])
    with pytest.raises(StageError, match=r"not in one space .* nothing to compare"):
        compare([one, add_run("jepa", 5, [0.1, 0.2], joints=(), latent_pool=2)])


def test_latents_of_other_spaces_are_not_compared(add_run: AddRun) -> None:
    one, pooled = add_run("jepa", 0, [0.1, 0.2], latent_pool=1), add_run("jepa", 0, [0.3, 0.4], latent_pool=2)
    found = compare([one, pooled])
    assert not found["latents_compared"]
    assert [set(entry["metrics"]) for entry in found["entries"][:2]] == [{"ade_m", "keypoint_m"}] * 2
    names = [entry["name"] for entry in found["entries"][:2]]
    assert difference_of(found, *names)["metrics"]["ade_m"]["mean"] == pytest.approx(-0.2)
    assert compare([one, add_run("vlm", 0, [0.1, 0.2], latent_pool=1)])["latents_compared"]
