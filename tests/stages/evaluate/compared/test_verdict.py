"""Verdicts on a difference: as strong as its interval, its videos and its seeds support."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thinkjepa.pipeline.report.markdown import comparison_markdown
from thinkjepa.pipeline.report.verdict import (
    Evidence,
    baseline_verdicts,
    figure_text,
    model_verdicts,
    outcome,
    verdict,
)
from thinkjepa.stages.display import SQUARED
from thinkjepa.stages.evaluate.compared.comparison import compare
from thinkjepa.stages.evaluate.compared.groups import EvaluatedRun

AddRun = Callable[..., EvaluatedRun]
ENOUGH = Evidence(num_groups=12, num_seeds=5)
MANY = np.linspace(0.1, 0.3, 21)


def figure(mean: float, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"mean": mean, "low": low, "high": high}


def test_a_loss_says_by_how_much_and_in_how_many_seeds() -> None:
    line = verdict(
        "thinkjepa",
        "constant pose",
        "ade_m",
        figure(0.012, 0.0091, 0.0153),
        ENOUGH,
        of_b=0.0667,
        by_seed=[0.01, 0.014, 0.011, 0.012, 0.013],
    )
    assert line == "thinkjepa loses to constant pose by 12.0 mm [9.1, 15.3] (18 %), in 5 of 5 seeds"


def test_a_win_is_told_as_a_positive_amount() -> None:
    found = figure(-0.012, -0.0153, -0.0091)
    line = verdict("jepa", "constant pose", "ade_m", found, ENOUGH, of_b=0.06, by_seed=[-0.02, 0.004, -0.02])
    assert line == "jepa beats constant pose by 12.0 mm [9.1, 15.3] (20 %), in 2 of 3 seeds"
    more_is_better = figure(0.05, 0.02, 0.08)
    assert verdict("a", "b", "cosine", more_is_better, ENOUGH) == "a beats b by 0.0500 [0.0200, 0.0800]"


@pytest.mark.parametrize(
    ("metric", "of_b", "amount"),
    [
        ("ade_m", 1e-9, "12.0 mm [9.1, 15.3]"),
        ("ade_m", 0.0, "12.0 mm [9.1, 15.3]"),
        ("ade_m", 0.0000499, "12.0 mm [9.1, 15.3]"),
        ("ade_m", 0.00048, "12.0 mm [9.1, 15.3] (25 times its 0.5 mm)"),
        ("ade_m", 0.0012, "12.0 mm [9.1, 15.3] (10 times its 1.2 mm)"),
        ("ade_m", 0.0013, "12.0 mm [9.1, 15.3] (923 %)"),
        ("l2", 3e-10, "0.0120 [0.0091, 0.0153]"),
        ("l2", 0.0001, "0.0120 [0.0091, 0.0153] (120 times its 0.0001)"),
    ],
)
def test_a_method_that_is_nearly_exact_is_no_measure_of_a_percentage(
    metric: str, of_b: float, amount: str
) -> None:
    line = verdict("jepa", "constant pose", metric, figure(0.012, 0.0091, 0.0153), ENOUGH, of_b=of_b)
    assert line == f"jepa loses to constant pose by {amount}"


@pytest.mark.parametrize("evidence", [ENOUGH, Evidence(num_groups=2, num_seeds=1)])
def test_an_interval_that_holds_zero_is_no_difference(evidence: Evidence) -> None:
    found = figure(0.0003, -0.001, 0.0016)
    line = verdict("thinkjepa", "jepa", "ade_m", found, evidence, of_b=0.06, by_seed=[0.0003])
    assert line == "no difference between thinkjepa and jepa: +0.3 mm [-1.0, +1.6] (0.5 %)"


@pytest.mark.parametrize(
    ("groups", "seeds", "reason"),
    [(9, 5, "9 groups are"), (12, 2, "2 seeds are"), (12, 1, "1 seed is"), (9, 1, "9 groups are")],
)
def test_too_few_groups_or_seeds_decide_nothing(groups: int, seeds: int, reason: str) -> None:
    found, evidence = figure(0.012, 0.0091, 0.0153), Evidence(groups, seeds)
    line = verdict("thinkjepa", "constant pose", "ade_m", found, evidence, by_seed=[0.012] * seeds)
    assert outcome("ade_m", found, evidence) == "open"
    assert line.endswith(f"; {reason} too few to tell")
    assert not {"beats", "loses"} & set(line.split())


def test_small_amounts_keep_their_digits() -> None:
    line = verdict("a", "b", "ade_m", figure(0.00004, 0.00001, 0.00007), ENOUGH, of_b=0.06)
    assert line == "a loses to b by 0.040 mm [0.010, 0.070] (0.07 %)"


@pytest.mark.parametrize(
    ("metric", "mean", "of_b", "limit"),
    [
        ("l2", 1.2e-7, 0.41, "0.0001 %"),
        ("l2", -1.2e-7, 0.41, "0.0001 %"),
        ("l2", 2e-6, 4.1, "0.0001 %"),
        ("l2", 4e-7, 0.05, "0.000001"),
        ("ade_m", 4e-7, 0.06, "0.001 mm"),
        ("ade_m", 0.0, None, "0.001 mm"),
    ],
)
def test_a_difference_of_rounding_is_equality(
    metric: str, mean: float, of_b: float | None, limit: str
) -> None:
    found = figure(mean, mean - 1e-9, mean + 1e-9)
    line = verdict("a", "b", metric, found, Evidence(2, 2), of_b=of_b, by_seed=[mean, 0.0])
    assert line == f"a is equal to b (difference below {limit})"


def test_what_rounds_to_zero_has_no_sign() -> None:
    assert figure_text(figure(-4e-6, -0.0002, 4e-6), SQUARED.signed) == "0.0000 [-0.0002, 0.0000]"
    found = figure(0.0000021, -4e-7, 0.0000031)
    assert outcome("l2", figure(2e-7, 1e-7, 3e-7), ENOUGH) == "no difference"
    line = verdict("a", "b", "l2", found, ENOUGH)
    assert line == "no difference between a and b: +0.000002 [0.000000, +0.000003]"


def test_one_video_has_no_interval_and_decides_nothing() -> None:
    line = verdict("a", "b", "l2", figure(0.5, None, None), Evidence(num_groups=1, num_seeds=3))
    assert line == "a is worse than b by 0.5000; 1 group is too few to tell"


@pytest.mark.parametrize("mean", [2e-6, -4.9e-5])
def test_without_an_interval_what_no_table_shows_is_equality(mean: float) -> None:
    """With one it is told with two decimals more."""
    alone = Evidence(num_groups=1, num_seeds=3)
    line = verdict("a", "b", "l2", figure(mean, None, None), alone, of_b=0.4, by_seed=[mean] * 3)
    assert line == "a is equal to b (difference below 0.0001); 1 group is too few to tell"
    assert "by 0.000002 [" in verdict("a", "b", "l2", figure(2e-6, 1e-6, 3e-6), ENOUGH, of_b=0.4)
    assert "worse than b by 0.000060;" in verdict("a", "b", "l2", figure(6e-5, None, None), alone)


def three_seeds(add_run: AddRun, variant: str, scores: Any, **settings: Any) -> list[EvaluatedRun]:
    return [add_run(variant, seed, scores + 0.001 * seed, **settings) for seed in range(3)]


def test_each_model_is_held_against_each_method_without_training(add_run: AddRun) -> None:
    comparison = compare(
        [
            *three_seeds(add_run, "thinkjepa", MANY - 0.05),
            *three_seeds(add_run, "jepa", MANY + 0.4),
        ]
    )
    lines = baseline_verdicts(comparison, "ade_m")
    assert [line.split(" by ")[0] for line in lines] == [
        "ADE: thinkjepa beats constant pose",
        "ADE: jepa loses to constant pose",
    ]
    assert all("in 3 of 3 seeds" in line for line in lines)
    assert lines[0].startswith("ADE: thinkjepa beats constant pose by 349.0 mm [")
    assert "(70 %)" in lines[0]
    between = model_verdicts(comparison, "ade_m")
    assert len(between) == 1
    assert between[0].startswith("ADE: thinkjepa beats jepa by 450.0 mm [450.0, 450.0]")


def test_one_seed_against_two_is_no_difference(add_run: AddRun) -> None:
    """The mean over seeds is better by 0.237 on every choice of clips, but the seeds disagree."""
    runs = [add_run("jepa", seed, MANY + shift) for seed, shift in enumerate((-0.08, -0.08, 0.35))]
    comparison = compare(runs)
    by_seed = comparison["differences"][0]["by_seed"]["ade_m"]
    assert by_seed == pytest.approx([0.2 - 0.08 - 0.5, 0.2 - 0.08 - 0.5, 0.2 + 0.35 - 0.5])
    (line,) = baseline_verdicts(comparison, "ade_m")
    assert line.startswith("ADE: no difference between jepa and constant pose: -236.7 mm [")


def test_of_many_settings_the_first_is_told_and_the_rest_are_counted(add_run: AddRun) -> None:
    runs = [
        run for width in range(8) for run in three_seeds(add_run, "jepa", MANY + 0.06 * width, width=width)
    ]
    runs += three_seeds(add_run, "jepa", MANY + 0.06, width=9)
    lines = baseline_verdicts(compare(runs), "ade_m")
    assert len(lines) == 2
    assert lines[0].startswith("ADE: jepa (width 0) beats constant pose by")
    assert lines[1].startswith("of 9 settings ")
    beat, lose = (int(lines[1].split(word)[0].split()[-1]) for word in (" beat constant", " lose to"))
    assert beat == sum(shift < 0.28 for shift in [*(0.06 * width for width in range(8)), 0.06])
    assert lose >= 1


def test_verdicts_stand_under_their_tables(add_run: AddRun) -> None:
    markdown = comparison_markdown(compare(three_seeds(add_run, "jepa", MANY)))
    table, below = markdown.split("## Who wins")[1].split("\n\n")[1:3]
    assert table.startswith("| method")
    assert below.startswith("- ADE: jepa beats constant pose by ")


def test_verdicts_of_the_sample_are_those_that_its_numbers_support() -> None:
    """Figures of a comparison of the sample's episodes with untrained models, cut to what is read."""
    comparison = json.loads(Path(__file__).with_name("sample_comparison.json").read_text())
    assert baseline_verdicts(comparison, "ade_m") == [
        "ADE: thinkjepa loses to constant pose by 4.1 mm [3.0, 5.2] (7 %), in 3 of 3 seeds",
        "ADE: jepa loses to constant pose by 3.8 mm [2.9, 4.9] (7 %), in 3 of 3 seeds",
        "ADE: vlm is worse than constant pose by 4.4 mm [3.3, 5.6] (8 %), in 1 of 1 seed; 1 seed is too few "
        "to tell",
    ]
    assert [line.split(" by ")[0] for line in baseline_verdicts(comparison, "l2")] == [
        "latent L2: thinkjepa loses to latent persistence",
        "latent L2: jepa loses to latent persistence",
        "latent L2: vlm is worse than latent persistence",
    ]
    assert model_verdicts(comparison, "ade_m", of="jepa") == [
        "ADE: no difference between thinkjepa and jepa: +0.241 mm [-0.381, +0.919] (0.4 %)",
        "ADE: no difference between jepa and vlm: -0.6 mm [-1.5, +0.3] (1 %)",
    ]
