"""The table of a sweep: chosen on validation, reported on test, and said so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from thinkjepa.pipeline.report.markdown import comparison_markdown
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.compared.comparison import compare
from thinkjepa.stages.evaluate.compared.groups import EvaluatedRun, group_runs
from thinkjepa.stages.evaluate.compared.ranking import rank

AddRun = Callable[..., EvaluatedRun]
MANY = np.linspace(0.1, 0.3, 21)


def seen(run: EvaluatedRun, distance_m: float, **others: float) -> EvaluatedRun:
    """The run with these validation figures."""
    figures = {"validation_distance_m": distance_m, "validation_latent_error": 1.0, "validation_loss": 2.0}
    return replace(run, validation={**figures, **others})


@pytest.fixture
def runs(add_run: AddRun) -> list[EvaluatedRun]:
    """On test clips film is best, on validation clips adaln."""
    return [
        seen(add_run("thinkjepa", 0, MANY, guidance="film"), 0.30),
        seen(add_run("thinkjepa", 1, MANY, guidance="film"), 0.34),
        seen(add_run("thinkjepa", 0, MANY + 0.1, guidance="adaln"), 0.10),
        seen(add_run("thinkjepa", 0, MANY + 0.2, guidance="cross"), 0.20),
    ]


def order(runs: list[EvaluatedRun], sort_by: str | None) -> list[str]:
    return [row["settings"]["guidance"] for row in compare(runs, sort_by=sort_by)["ranking"]["rows"]]


def test_rows_are_sorted_by_validation_clips_unless_another_figure_is_named(runs: list[EvaluatedRun]) -> None:
    assert order(runs, None) == ["adaln", "cross", "film"]
    assert order(runs, "ade_m") == ["film", "adaln", "cross"]


def test_a_metric_that_is_better_when_larger_sorts_the_other_way(add_run: AddRun) -> None:
    groups = group_runs([seen(add_run("jepa", 0, MANY, depth=depth), 0.1) for depth in (1, 2)])
    scores = {
        group.name: {"acc_5cm": {"mean": share}} for group, share in zip(groups, (0.1, 0.9), strict=True)
    }
    ranking = rank(groups, scores, sort_by="acc_5cm")
    assert [row["settings"]["depth"] for row in ranking["rows"]] == [2, 1]
    assert ranking["clips"] == "test"
    with pytest.raises(StageError, match="cannot sort by 'fde_m'"):
        rank(groups, scores, sort_by="fde_m")


def test_a_row_has_seeds_aggregated_and_what_differs(runs: list[EvaluatedRun]) -> None:
    ranking = compare(runs)["ranking"]
    film = ranking["rows"][-1]
    assert ranking["varied"] == ["guidance"]
    assert film["num_seeds"] == 2
    assert film["validation"]["validation_distance_m"] == pytest.approx(0.32)
    assert film["validation_seed_std"]["validation_distance_m"] == pytest.approx(0.02 * 2**0.5)


def test_the_table_says_which_clips_its_order_comes_from(runs: list[EvaluatedRun]) -> None:
    by_validation = comparison_markdown(compare(runs))
    row = next(line for line in by_validation.splitlines() if line.startswith("| 3 "))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["3", "thinkjepa", "film", "2", "320.0 ± 28.3"]
    assert cells[6].startswith("200.0 [")
    assert "Sorted by validation distance (mm): choose by it, and report the test columns" in by_validation
    by_test = comparison_markdown(compare(runs, sort_by="ade_m"))
    assert "who chooses by this order chooses on the clips that the report stands on" in by_test


def test_losses_of_other_kinds_sort_nothing(add_run: AddRun) -> None:
    pair = [seen(add_run("jepa", 0, MANY, latent_loss=loss), 0.1) for loss in ("mse", "l1")]
    with pytest.raises(StageError, match="differ in latent_loss"):
        compare(pair, sort_by="validation_loss")
    same = [seen(add_run("jepa", 0, MANY, depth=depth), 0.1) for depth in (1, 2)]
    assert len(compare(same, sort_by="validation_loss")["ranking"]["rows"]) == 2


def test_of_many_settings_each_is_compared_with_the_first_only(add_run: AddRun) -> None:
    runs = [seen(add_run("jepa", 0, MANY + number, depth=number), 1 / (number + 1)) for number in range(20)]
    found = compare(runs)
    first = found["ranking"]["rows"][0]["name"]
    models = {entry["name"] for entry in found["entries"] if entry["method"] == "model"}
    between = [item for item in found["differences"] if {item["a"], item["b"]} <= models]
    assert len(between) == 19
    assert all(first in (item["a"], item["b"]) for item in between)


def test_runs_of_which_one_predicts_no_joints_are_sorted_by_latents(add_run: AddRun) -> None:
    pair = [seen(add_run("jepa", 0, MANY, depth=depth), 0.1) for depth in (1, 2)]
    latent_only = replace(pair[0], validation={"validation_latent_error": 0.5, "validation_loss": 0.5})
    assert compare([latent_only, pair[1]])["ranking"]["sorted_by"] == "validation_latent_error"
