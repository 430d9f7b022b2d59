"""Predictions that become context: what is fed back and measured; nothing of the future goes in."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from torch import Tensor

from thinkjepa.pipeline.cli import eval as eval_app
from thinkjepa.pipeline.report.plots import rollout_picture
from thinkjepa.pipeline.report.rollouts import rollout_markdown
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.baselines import METHODS
from thinkjepa.stages.evaluate.compared.rollouts import compare_rollouts
from thinkjepa.stages.evaluate.evaluation import evaluate, predictions, rows_of
from thinkjepa.stages.evaluate.metrics import METRICS
from thinkjepa.stages.evaluate.rollout import evaluate_rollout, roll_out, slopes_per_s
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.train.model.forecast import ForecastModel
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]
WINDOW, OBSERVED = 2, 3
ONE_WINDOW = {"variance_ratio", "effective_rank"}
"""Metrics that rollouts do not have."""

VARIANTS: dict[str, dict[str, Any]] = {
    "film": {},
    "adaln": {"guidance": "adaln"},
    "cross": {"guidance": "cross"},
    "jepa": {"variant": "jepa"},
    "vlm": {"variant": "vlm"},
    "vlm-cross": {"variant": "vlm", "guidance": "cross"},
}


pytestmark = pytest.mark.usefixtures("whole_head")


@pytest.fixture
def train_run(tmp_path: Path) -> Callable[..., Path]:
    def run(cache: Path, name: str = "run", **changes: Any) -> Path:
        settings = TrainSettings(
            **{
                "epochs": 1,
                "batch_size": 8,
                "depth": 2,
                "width": 24,
                "heads": 2,
                "fusion_width": 16,
                "head_width": 16,
                "learning_rate": 3e-3,
                "gate_learning_rate": 0.1,
                "device": "cpu",
                **changes,
            }
        )
        train(cache, tmp_path / name, settings)
        return tmp_path / name

    return run


def forecasts(run_dir: Path, cache: Path, *, windows: int) -> tuple[ForecastModel, list[tuple[Any, Any]]]:
    """The model of a run, and of its test clips what is known and what every method forecasts."""
    run = TrainedRun.open(run_dir)
    features = run.features(cache).reaching(windows=windows)
    model = run.model()
    clips = rows_of(run.clip_ids("test"), features)
    found = list(predictions(run, model, features, clips, device=torch.device("cpu")))
    return model, [(batch, predicted) for _, batch, predicted in found]


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_what_is_predicted_becomes_the_context_of_the_next_window(
    latent_cache: BuildCache, train_run: Callable[..., Path], changes: dict[str, Any]
) -> None:
    cache = latent_cache(windows=4, labelled=16, with_tokens=True)
    model, parts = forecasts(train_run(cache, **changes), cache, windows=4)
    for batch, predicted in parts:

        def window(context: Tensor, batch: Any = batch) -> Tensor:
            latents: Tensor = model(context, batch.pooled, batch.poses, batch.tokens).latents
            return latents

        with torch.no_grad():
            steps = [batch.observed, window(batch.observed)]
            while sum(part.shape[1] for part in steps) < OBSERVED + 4 * WINDOW:
                if changes.get("variant") == "vlm":
                    steps.append(steps[-1][:, -1:])
                else:
                    steps.append(window(torch.cat(steps, dim=1)[:, -OBSERVED:]))
            rolled = torch.cat(steps, dim=1)[:, OBSERVED:]
        assert torch.equal(predicted["model"].latents, rolled)
        joints_m = predicted["model"].joints_m
        if changes.get("variant") == "vlm":
            last_m = joints_m[:, WINDOW - 1 : WINDOW]
            assert torch.equal(joints_m[:, WINDOW:], last_m.expand_as(joints_m[:, WINDOW:]))
        else:
            assert torch.equal(joints_m, model.read_joints(rolled, batch.poses))
        assert not torch.equal(rolled[:, :WINDOW], rolled[:, WINDOW : 2 * WINDOW])


def test_up_to_one_window_it_is_the_plain_evaluation(
    latent_cache: BuildCache, train_run: Callable[..., Path]
) -> None:
    run = train_run(latent_cache(windows=3, labelled=16))
    plain, rolled = evaluate(run), evaluate_rollout(run, horizons=[2, 1, 5])
    assert [item["steps"] for item in rolled["horizons"]] == [1, 2, 5]
    assert [item["windows"] for item in rolled["horizons"]] == [1, 1, 3]
    for kind in ("latent", "trajectory"):
        whole = rolled["horizons"][1][kind]
        assert plain[kind].keys() == whole.keys()
        for method, metrics in plain[kind].items():
            assert set(metrics) == set(whole[method])
            for name in whole[method]:
                mean = metrics[name]
                assert whole[method][name]["mean"] == pytest.approx(mean, rel=1e-9), (method, name)
                low, high = plain["intervals"][kind][method][name]
                assert (whole[method][name]["low"], whole[method][name]["high"]) == pytest.approx((low, high))
    whole = rolled["horizons"][1]["over_clips"]
    for method, figures in plain["over_clips"].items():
        if method != "future":
            assert whole[method] == pytest.approx(without_one_window(figures), rel=1e-9), method
    assert whole["model"].keys() == {"skill_persistence", "skill_mean", "median_rank"}
    assert rolled["over_clips"]["future"]["candidates"] == plain["over_clips"]["future"]["candidates"]
    first, _, last = rolled["horizons"]
    assert first["over_clips"]["model"] != last["over_clips"]["model"]
    errors = [last["latent"][name]["l2"]["mean"] for name in ("model", "latent_persistence")]
    assert last["over_clips"]["model"]["skill_persistence"] == pytest.approx(1 - errors[0] / errors[1])
    seconds = [item["seconds"] for item in rolled["horizons"]]
    assert seconds == pytest.approx([0.15, 0.35, 0.95])
    assert [item["last_frame_s"] for item in rolled["horizons"]] == pytest.approx([0.2, 0.4, 1.0])
    assert json.loads((run / "rollout-test.json").read_text()) == rolled


def without_one_window(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if name not in ONE_WINDOW}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_nothing_behind_the_split_enters_a_forecast(
    latent_cache: BuildCache, train_run: Callable[..., Path], changes: dict[str, Any]
) -> None:
    """Latents, joints and cameras behind the split are others: to the last bit the same forecasts.

    Those of the test videos: some baselines learn from the training clips' futures, as models do.
    """
    cache = latent_cache(windows=3, labelled=16, with_tokens=True)
    run = train_run(cache, **changes)
    test_videos = {clip_id.split("@")[0] for clip_id in TrainedRun.open(run).clip_ids("test")}
    other = latent_cache(
        name="other", windows=3, labelled=16, with_tokens=True, later=0.5, later_in=test_videos
    )
    _, parts = forecasts(run, cache, windows=3)
    _, changed = forecasts(run, other, windows=3)
    for (batch, predicted), (later, again) in zip(parts, changed, strict=True):
        assert not torch.equal(batch.future, later.future), "the control"
        assert not torch.equal(batch.trajectory.future_m, later.trajectory.future_m), "the control"
        assert predicted.keys() == again.keys()
        for method, forecast in predicted.items():
            if METHODS[method].sees_future:
                assert not torch.equal(forecast.joints_m, again[method].joints_m), "the control"
                continue
            for name in ("latents", "joints_m"):
                one, two = getattr(forecast, name), getattr(again[method], name)
                assert (one is None and two is None) or torch.equal(one, two), (method, name)
    scores = [evaluate_rollout(run, horizons=[6], cache_dir=place) for place in (cache, other)]
    assert scores[0]["horizons"][0]["latent"]["model"] != scores[1]["horizons"][0]["latent"]["model"]
    assert scores[0]["future_camera_poses"] == "not used"


def test_horizons_that_the_cache_does_not_reach_are_refused(
    latent_cache: BuildCache, train_run: Callable[..., Path]
) -> None:
    run = train_run(latent_cache(windows=2))
    with pytest.raises(StageError, match=r"6 latent steps are 3 future windows, encoder-\w+ has 2: extract"):
        evaluate_rollout(run, horizons=[2, 5])
    for wrong in ([], [0], [-1, 2]):
        with pytest.raises(StageError, match="give horizons in latent steps, 1 or more"):
            evaluate_rollout(run, horizons=wrong)


def test_a_multi_step_loss_is_the_mean_over_the_windows_that_are_rolled_out(
    latent_cache: BuildCache, train_run: Callable[..., Path]
) -> None:
    cache = latent_cache(windows=3)
    run = train_run(cache, rollout_windows=3)
    reported = json.loads((run / "metrics.json").read_text())["validation_loss"]
    one, three = evaluate_rollout(run, horizons=[2, 6], split="validation")["horizons"]
    assert three["latent"]["model"]["l2"]["mean"] == pytest.approx(reported, rel=1e-6)
    assert one["latent"]["model"]["l2"]["mean"] != pytest.approx(reported, rel=1e-6), "the control"
    with pytest.raises(StageError, match="8 latent steps are 4 future windows"):
        train_run(cache, "too far", rollout_windows=4)


def test_gradients_of_the_last_window_reach_the_weights_through_the_first(
    latent_cache: BuildCache, train_run: Callable[..., Path]
) -> None:
    cache = latent_cache(windows=2)
    model, ((batch, _), *_) = forecasts(train_run(cache, variant="jepa"), cache, windows=2)
    observed = batch.observed.clone().requires_grad_()
    rolled = model(observed, batch.pooled, None, num_steps=2 * WINDOW).latents
    (reached,) = torch.autograd.grad(rolled[:, WINDOW:].square().sum(), observed)
    assert reached[:, 0].abs().sum() > 0, "the first step has left the context: through predictions only"


def test_slopes_are_those_of_numpy_polyfit() -> None:
    """A step without an error is left out; of one step there is no slope."""
    generator = np.random.default_rng(0)
    errors, times_s = generator.normal(size=(4, 6)), np.sort(generator.uniform(0, 3, (4, 6)), axis=1)
    errors[1, 2] = np.nan
    errors[2, 1:] = np.nan
    errors[3] = 5.0
    found = slopes_per_s(errors, times_s)
    assert found[0] == pytest.approx(np.polyfit(times_s[0], errors[0], 1)[0])
    rest = [0, 1, 3, 4, 5]
    assert found[1] == pytest.approx(np.polyfit(times_s[1, rest], errors[1, rest], 1)[0])
    assert np.isnan(found[2])
    assert found[3] == 0.0


def test_seeds_of_rollouts_are_averaged_paired_and_told_by_slope(
    latent_cache: BuildCache, train_run: Callable[..., Path]
) -> None:
    cache = latent_cache(windows=3, labelled=16)
    rolled = {
        f"{variant}-{seed}": roll_out(
            train_run(cache, f"{variant}-{seed}", variant=variant, seed=seed), horizons=[2, 6]
        )
        for variant in ("thinkjepa", "jepa")
        for seed in range(3)
    }
    found = compare_rollouts(rolled)
    assert [(group["name"], group["seeds"]) for group in found["groups"]] == [
        ("thinkjepa", [0, 1, 2]),
        ("jepa", [0, 1, 2]),
    ]
    difference = found["differences"][0]
    assert (difference["a"], difference["b"]) == ("thinkjepa", "jepa")

    def mean(variant: str, at: Callable[[dict[str, Any]], dict[str, Any]]) -> float:
        results = [rolled[f"{variant}-{seed}"].result for seed in range(3)]
        return float(np.mean([at(result)["trajectory"]["model"]["ade_m"]["mean"] for result in results]))

    entries = {entry["name"]: entry for entry in found["entries"]}
    places: list[tuple[Callable[[dict[str, Any]], dict[str, Any]], Callable[[Any], Any]]] = [
        (lambda result: result["horizons"][0], lambda item: item["horizons"][0]),
        (lambda result: result["horizons"][1], lambda item: item["horizons"][1]),
        (lambda result: result["per_s"], lambda item: item["per_s"]),
    ]
    for of_run, of_group in places:
        means = {variant: mean(variant, of_run) for variant in ("thinkjepa", "jepa")}
        for variant, expected in means.items():
            assert of_group(entries[variant])["ade_m"]["mean"] == pytest.approx(expected)
        figure = of_group(difference)["ade_m"]
        assert figure["mean"] == pytest.approx(means["thinkjepa"] - means["jepa"])
        assert figure["low"] < figure["mean"] < figure["high"]
    for index, horizon in enumerate(("2 steps, 0.40 s", "6 steps, 1.20 s")):
        skills = [
            rolled[f"jepa-{seed}"].result["horizons"][index]["over_clips"]["model"]["skill_persistence"]
            for seed in range(3)
        ]
        assert entries["jepa"]["over_clips"][index]["skill_persistence"] == pytest.approx(np.mean(skills))
        assert {"retrieved", "retrieval_rank"} <= difference["horizons"][index].keys()
        details = rollout_markdown(found).split("What latents are worth")[1].split(f"Up to {horizon}:")[1]
        row = next(line for line in details.splitlines() if line.startswith("| jepa "))
        assert row.split("|")[2].strip() == METRICS["skill_persistence"].unit.number(float(np.mean(skills)))
    markdown = rollout_markdown(found)
    assert "by chance it is the first in" in markdown
    assert "- thinkjepa: 3 seeds (0, 1, 2)" in markdown
    table = markdown.split("## By how much: ADE (mm)")[1]
    assert next(line for line in table.splitlines() if line.startswith("| a ")).endswith(" slope, per s |")


def test_the_command_rolls_every_variant_out(
    latent_cache: BuildCache,
    train_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = latent_cache(windows=16, labelled=16, with_tokens=True)
    for name, changes in VARIANTS.items():
        train_run(cache, f"runs/{name}", **changes)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["thinkjepa-eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            eval_app.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    status, text, stderr = run("--runs", tmp_path / "runs", "--rollout", "4,8,16,32")
    assert status == 0, stderr
    out = tmp_path / "runs" / "comparison"
    markdown = (out / "rollout-test.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    heads = ["4 steps, 0.80 s", "8 steps, 1.60 s", "16 steps, 3.20 s", "32 steps, 6.40 s"]
    assert ["method", "seeds", *heads, "slope, per s"] in rows
    assert text.count("| method") == 1, "the terminal shows one table"
    assert f"all tables: {out / 'rollout-test.md'}" in text
    compared = json.loads((out / "rollout-test.json").read_text())["compared"]
    labels = {run: group["name"] for group in compared["groups"] for run in group["runs"]}
    assert len(set(labels.values())) == len(VARIANTS), "each has a name of its own"
    for name in VARIANTS:
        result = json.loads((tmp_path / "runs" / name / "rollout-test.json").read_text())
        assert [item["steps"] for item in result["horizons"]] == [4, 8, 16, 32]
        mean = result["horizons"][3]["trajectory"]["model"]["ade_m"]["mean"]
        row = next(row for row in rows if row[0] == labels[name])
        assert row[5].startswith(f"{1000 * mean:.1f} [")
        assert all("[" in cell for cell in row[2:])
        assert f"| {labels[name]} " in text
    count = sum(row[0] == "constant velocity" for row in rows)
    assert count == 2 + len(heads), "of ADE, of FDE, and of kinds of error at each horizon"
    assert "future camera poses are not used" in markdown
    height, width, _ = matplotlib.image.imread(out / "rollout-test.png").shape
    assert width > 1000
    assert height > 400
    captions: list[str] = []
    keep = lambda figure: captions.append(figure.get_suptitle()) or b""  # noqa: E731
    rollout_picture(compared, encode=keep)
    count = f"{compared['num_clips']} clips of {compared['num_videos']} videos"
    assert captions == [f"lines: means over clips; bands: 95 % intervals, {count}"]
    status, _, stderr = run("--run", tmp_path / "runs" / "jepa", "--rollout", "four")
    assert (status, stderr.count("\n")) == (2, 1), stderr
