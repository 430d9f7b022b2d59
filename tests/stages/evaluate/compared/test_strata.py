"""Figures by the length of clips' histories: which clips are in which stratum, and what is shown of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from thinkjepa.cache import FeatureCache
from thinkjepa.pipeline.report.markdown import comparison_markdown
from thinkjepa.stages.data.groups import task_of
from thinkjepa.stages.evaluate.compared.comparison import compare
from thinkjepa.stages.evaluate.compared.groups import EvaluatedRun
from thinkjepa.stages.evaluate.strata import strata_of, task_seen, task_strata

AddRun = Callable[..., EvaluatedRun]
BuildCache = Callable[..., Path]


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
    assert row.endswith("-100.0 [-100.0, -100.0] |")
    assert "by length of history" not in comparison_markdown(compare([add_run("vlm", 0, scores)]))


def test_clips_are_told_apart_by_whether_training_has_their_folders_name(latent_cache: BuildCache) -> None:
    """The cache has eight tasks, `task0` to `task7`; `part2/task3` is the task `task3`."""
    clips = list(FeatureCache.open(latent_cache()).select())
    seen_C = task_seen(clips, frozenset({"task3", "task5"}))
    assert seen_C.tolist() == [float(clip.video.startswith(("task3/", "task5/"))) for clip in clips]
    seen, unseen = task_strata(seen_C)
    assert (seen.label, unseen.label) == ("seen in training", "unseen")
    assert np.array_equal(seen.chosen_C, ~unseen.chosen_C)
    assert int(seen.chosen_C.sum()) == 8, "two of eight tasks, of sixteen videos with two clips"
    assert task_of("test/part2/task3/0.mp4") == "task3"
    assert task_of("0.mp4") == ""
    assert np.isnan(task_seen(clips, None)).all()
    for one in (np.ones(3), np.zeros(3), np.full(3, np.nan)):
        assert task_strata(one) == []


def test_tasks_have_their_own_means(add_run: AddRun) -> None:
    scores, seen = np.linspace(0.2, 0.6, 12), np.tile([1.0, 0.0, np.nan], 4)
    comparison = compare([add_run("jepa", seed, scores, task_seen=seen) for seed in range(3)])
    one, other = comparison["by_task"]
    assert [(item["task"], item["num_clips"]) for item in (one, other)] == [
        ("seen in training", 4),
        ("unseen", 4),
    ]
    assert one["entries"]["jepa"]["ade_m"]["mean"] == pytest.approx(scores[::3].mean())
    assert other["entries"]["jepa"]["ade_m"]["mean"] == pytest.approx(scores[1::3].mean())
    table = comparison_markdown(comparison).split("## Where: tasks that training has seen or not")[1]
    assert any(line.startswith("| unseen") for line in table.splitlines())
    assert "tasks that training" not in comparison_markdown(compare([add_run("vlm", 0, scores)]))
