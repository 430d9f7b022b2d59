"""Figures by the length of clips' histories: which clips are in which stratum, and what is shown of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from thinkjepa.pipeline.report.markdown import comparison_markdown
from thinkjepa.stages.evaluate.compared.comparison import compare
from thinkjepa.stages.evaluate.compared.groups import EvaluatedRun
from thinkjepa.stages.evaluate.strata import strata_of

AddRun = Callable[..., EvaluatedRun]


def test_clips_without_a_history_are_a_stratum_and_the_others_are_quantiles() -> None:
    """Nine others at 1 to 9 s: three bins of three."""
    found = strata_of(np.array([0.0, 5.0, 1.0, 9.0, 0.0, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0]))
    labels = ["none", "1.00 to 3.00 s", "4.00 to 6.00 s", "7.00 to 9.00 s"]
    assert [stratum.label for stratum in found] == labels
    assert [int(stratum.chosen_C.sum()) for stratum in found] == [2, 3, 3, 3]
    assert np.sum([stratum.chosen_C for stratum in found], axis=0).tolist() == [1] * 11


@pytest.mark.parametrize("beyond_s", [[0.0] * 5, [2.0] * 5])
def test_one_stratum_is_none(beyond_s: list[float]) -> None:
    assert strata_of(np.array(beyond_s)) == []


def test_equal_histories_stay_together() -> None:
    found = strata_of(np.array([2.0] * 9 + [0.0] + [3.0]))
    sizes = [(stratum.label, int(stratum.chosen_C.sum())) for stratum in found]
    assert sizes == [("none", 1), ("2.00 s", 9), ("3.00 s", 1)]


def test_each_stratum_has_its_own_means_and_differences(add_run: AddRun) -> None:
    """Guidance helps by 0.1 where there is a history, and not at all where there is none."""
    scores, beyond_s = np.linspace(0.2, 0.6, 24), np.tile([0.0, 1.0], 12)
    runs = [add_run("jepa", seed, scores, beyond_s=beyond_s) for seed in range(3)]
    helped = scores - 0.1 * (beyond_s > 0)
    runs += [add_run("thinkjepa", seed, helped, beyond_s=beyond_s) for seed in range(3)]
    comparison = compare(runs)
    none, one = comparison["by_history"]
    assert (none["history"], none["num_clips"]) == ("none", 12)
    assert (one["history"], one["num_clips"]) == ("1.00 s", 12)
    assert none["entries"]["jepa"]["ade_m"]["mean"] == pytest.approx(scores[::2].mean())
    found = [
        next(item for item in stratum["differences"] if (item["a"], item["b"]) == ("thinkjepa", "jepa"))
        for stratum in (none, one)
    ]
    assert [item["metrics"]["ade_m"]["mean"] for item in found] == pytest.approx([0.0, -0.1])
    table = comparison_markdown(comparison).split("## Where: by length of history")[1]
    row = next(line for line in table.splitlines() if line.startswith("| 1.00 s"))
    assert row.endswith("-0.1000 [-0.1000, -0.1000] |")
    assert "by length of history" not in comparison_markdown(compare([add_run("vlm", 0, scores)]))
