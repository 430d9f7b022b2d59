"""Runs are seeds of one another by the clips and labels they were trained on, and by settings they read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from latent_cache import TINY_JEPA

from thinkjepa.cache import FeatureCache
from thinkjepa.pipeline.report.evaluation import comparison_page
from thinkjepa.pipeline.report.markdown import comparison_markdown
from thinkjepa.stages.data.partition import SplitRule, clip_digests
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.compared.comparison import compare
from thinkjepa.stages.evaluate.evaluation import evaluate
from thinkjepa.stages.evaluate.runs import TrainedRun, read_evaluations
from thinkjepa.stages.json_files import read_json
from thinkjepa.stages.train.run import train

BuildCache = Callable[..., Path]


def test_what_is_named_in_place_of_a_run_is_said(tmp_path: Path) -> None:
    inside = tmp_path / "runs" / "first"
    inside.mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (inside / "run.json").write_text("{}")
    for name, message in (
        ("missing", f"{str(tmp_path / 'missing')!r} is no finished training run: there is no such folder"),
        ("empty", f"{str(tmp_path / 'empty')!r} has no run.json: it is no finished training run"),
        (
            "runs",
            f"{str(tmp_path / 'runs')!r} is no finished training run, but one is beneath it: {str(inside)!r}",
        ),
    ):
        with pytest.raises(StageError) as caught:
            TrainedRun.open(tmp_path / name)
        assert str(caught.value) == message


@pytest.fixture
def evaluated(tmp_path: Path) -> Callable[..., Path]:
    """A function that trains a run on a cache, evaluates it and returns its folder."""

    def build(cache: Path, name: str, **changes: Any) -> Path:
        train(cache, tmp_path / name, replace(TINY_JEPA, **changes), split=SplitRule(group_by="video"))
        evaluate(tmp_path / name, cache_dir=cache)
        return tmp_path / name

    return build


def test_seeds_on_other_clips_are_refused(latent_cache: BuildCache, evaluated: Callable[..., Path]) -> None:
    few, many = latent_cache(num_videos=16), latent_cache(name="more", num_videos=24)
    runs = [evaluated(few, "one", seed=0), evaluated(many, "other", seed=1)]
    counts = [read_json(run / "run.json")["clips"]["train"]["count"] for run in runs]
    assert counts[0] < counts[1]
    told = rf"'one' and 'other' have the same settings.*training clips \({counts[0]} and {counts[1]}\)"
    with pytest.raises(StageError, match=told):
        compare(read_evaluations(runs, "test"))


def test_groups_on_other_clips_are_compared_with_a_warning(
    latent_cache: BuildCache, evaluated: Callable[..., Path]
) -> None:
    few, many = latent_cache(num_videos=16), latent_cache(name="more", num_videos=24)
    runs = [evaluated(few, "one"), evaluated(many, "other", variant="thinkjepa")]
    found = compare(read_evaluations(runs, "test"))
    trained = {
        name: read_json(run / "run.json")["clips"]["train"]
        for name, run in zip(("jepa", "thinkjepa"), runs, strict=True)
    }
    assert {"data": "train", "groups": trained} in found["different_data"]
    line = "warning: these groups were trained on different training clips"
    assert line in comparison_markdown(found)
    assert line in comparison_page(found, [])
    alike = compare(read_evaluations([runs[0], evaluated(few, "third", variant="vlm")], "test"))
    assert alike["different_data"] == []
    assert "warning" not in comparison_page(alike, [])


def test_a_share_of_the_training_groups_is_no_other_labels(
    latent_cache: BuildCache, evaluated: Callable[..., Path]
) -> None:
    cache = latent_cache(labelled=16)
    runs = [evaluated(cache, f"share {share}", share=share) for share in (0.5, 1.0)]
    found = compare(read_evaluations(runs, "test"))
    assert [item["data"] for item in found["different_data"]] == ["train"]


def test_seeds_on_other_labels_are_refused(latent_cache: BuildCache, evaluated: Callable[..., Path]) -> None:
    """Labels that were corrected between two trainings, and evaluated again after it."""
    cache = latent_cache(labelled=16)
    run = evaluated(cache, "one", seed=0)
    record = read_json(run / "run.json")
    ids = read_json(run / "split.json")["clips"]
    assert record["clips"] == clip_digests(ids)
    assert record["labels"]
    corrected = latent_cache(name="corrected", labelled=16, relabelled=True)
    assert FeatureCache.open(corrected).labels
    other = evaluated(corrected, "other", seed=1)
    evaluate(run, cache_dir=corrected)
    with pytest.raises(StageError, match=r"different hand labels \(32 and 32\)"):
        compare(read_evaluations([run, other], "test"))


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance": "cross", "drop_guidance": 0.5, "use_streams": "prompt"},
        {"tracker": "tensorboard"},
        {"anchor": "last_pose", "head_width": 8},
    ],
)
def test_settings_that_a_run_does_not_read_tell_no_groups_apart(
    latent_cache: BuildCache, evaluated: Callable[..., Path], changes: dict[str, Any]
) -> None:
    cache = latent_cache()
    runs = [evaluated(cache, "one", seed=0), evaluated(cache, "other", seed=1, **changes)]
    found = compare(read_evaluations(runs, "test"))
    assert [group["seeds"] for group in found["groups"]] == [[0, 1]]
    assert found["varied"] == {}


def test_settings_that_a_run_reads_tell_groups_apart(
    latent_cache: BuildCache, evaluated: Callable[..., Path]
) -> None:
    """A setting of guidance has no value in `jepa`."""
    cache = latent_cache(with_tokens=True)
    runs = [
        evaluated(cache, "film", variant="thinkjepa"),
        evaluated(cache, "cross", variant="thinkjepa", guidance="cross"),
        evaluated(cache, "jepa"),
    ]
    found = compare(read_evaluations(runs, "test"))
    assert [group["name"] for group in found["groups"]] == [
        "thinkjepa (guidance cross)",
        "thinkjepa (guidance film)",
        "jepa",
    ]
    assert found["varied"] == {"guidance": ["cross", "film"]}
