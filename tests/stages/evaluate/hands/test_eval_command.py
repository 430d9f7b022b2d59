"""`thinkjepa-eval`, run as a user runs it: one run, several, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib.image
import pytest
from commands import run_command

from thinkjepa.cache import FeatureCache, VideoLabels, WriteSession
from thinkjepa.cache.disk.lock import WriteLock
from thinkjepa.pipeline.cli import eval as eval_app

TrainRun = Callable[..., Path]
Result = subprocess.CompletedProcess[str]


@pytest.fixture
def evaluate_command(call_main: Callable[..., Result]) -> Callable[..., Result]:
    return partial(call_main, eval_app.main, "thinkjepa-eval")


def test_one_run_gets_figures_table_and_picture(train_run: TrainRun) -> None:
    run = train_run()
    done = run_command("thinkjepa-eval", "--run", run)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
    assert "Traceback" not in done.stderr
    ade_m = json.loads((run / "eval-test.json").read_text())["trajectory"]["model"]["ade_m"]
    row = next(line for line in done.stdout.splitlines() if line.startswith("| thinkjepa  "))
    assert f" {1000 * ade_m:.1f} [" in row
    assert done.stdout.count("| method") == 1, "one table, the others are in the file"
    assert len(done.stdout.splitlines()) < 30
    assert max(map(len, done.stdout.splitlines()[:10])) <= 130
    markdown = (run / "eval-test.md").read_text()
    assert f" {1000 * ade_m:.1f} [" in next(
        line for line in markdown.splitlines() if line.startswith("| thinkjepa  ")
    )
    verdicts = [line for line in done.stdout.splitlines() if line.startswith(("ADE: ", "latent L2: "))]
    assert len(verdicts) == 4, "the best pose, the head on true latents, the best latents, shuffled guidance"
    assert all(f"- {line}" in markdown for line in verdicts)
    assert all(name in done.stdout for name in ("eval-test.md", "eval-test.png", "eval-test.parquet"))
    height, width, _ = matplotlib.image.imread(run / "eval-test.png").shape
    assert width > 600
    assert height > 300


def test_the_cache_is_the_runs_own_unless_a_flag_names_another(
    train_run: TrainRun, tmp_path: Path, evaluate_command: Callable[..., Result]
) -> None:
    params, run = tmp_path / "params.yaml", train_run()
    params.write_text("videos: videos\ncache_dir: elsewhere\n", encoding="utf-8")
    done = evaluate_command("--params", params, "--run", run)
    assert done.returncode == 0, done.stderr
    refused = evaluate_command("--params", params, "--run", run, "--cache-dir", tmp_path / "elsewhere")
    assert refused.returncode == 2
    assert "elsewhere" in refused.stderr


def test_runs_of_a_folder_are_evaluated_once_and_compared(
    train_run: TrainRun, tmp_path: Path, evaluate_command: Callable[..., Result]
) -> None:
    for variant, seed in (("thinkjepa", 0), ("thinkjepa", 1), ("jepa", 0)):
        train_run(f"runs/{variant}-{seed}", variant=variant, seed=seed)
    arguments = ("--runs", tmp_path / "runs", "--out", tmp_path / "out", "--json")
    first = evaluate_command(*arguments)
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert [group["seeds"] for group in result["groups"]] == [[0, 1], [0]]
    assert result == json.loads((tmp_path / "out" / "comparison.json").read_text())
    names = {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")}
    pictures = {"horizon.png", "distances.png", "differences.png"}
    assert names == {"comparison.json", "comparison.md"} | pictures

    parquet = tmp_path / "runs" / "jepa-0" / "eval-test.parquet"
    before = parquet.stat().st_mtime_ns
    assert json.loads(evaluate_command(*arguments).stdout) == result
    assert parquet.stat().st_mtime_ns == before, "what is evaluated is not evaluated again"
    assert json.loads(evaluate_command(*arguments, "--again").stdout) == result
    assert parquet.stat().st_mtime_ns > before


def test_means_of_a_single_run_are_the_same_in_both_places(
    train_run: TrainRun, tmp_path: Path, evaluate_command: Callable[..., Result]
) -> None:
    run = train_run()
    one = json.loads(evaluate_command("--run", run, "--json").stdout)
    compared = json.loads(evaluate_command("--run", run, "--out", tmp_path / "out", "--json").stdout)
    entry = next(entry for entry in compared["entries"] if entry["method"] == "model")
    for name, figure in entry["metrics"].items():
        kind = "trajectory" if name in one["trajectory"]["model"] else "latent"
        assert figure["mean"] == one[kind]["model"][name]
        assert [figure["low"], figure["high"]] == one["intervals"][kind]["model"][name]


def test_a_run_that_was_trained_again_is_evaluated_again(
    train_run: TrainRun, tmp_path: Path, evaluate_command: Callable[..., Result]
) -> None:
    run = train_run("runs/jepa-0", variant="jepa")
    arguments = ("--runs", tmp_path / "runs", "--out", tmp_path / "out", "--json")
    before = json.loads(evaluate_command(*arguments).stdout)
    (run / "run.json").unlink()
    train_run("runs/jepa-0", variant="jepa", epochs=5)
    after = json.loads(evaluate_command(*arguments).stdout)
    assert after["entries"][0]["metrics"]["l2"] != before["entries"][0]["metrics"]["l2"]


def test_corrected_labels_are_evaluated_again(
    train_run: TrainRun, labelled_cache: Path, tmp_path: Path, evaluate_command: Callable[..., Result]
) -> None:
    train_run("runs/jepa-0", variant="jepa")
    arguments = ("--runs", tmp_path / "runs", "--out", tmp_path / "out", "--json")
    before = json.loads(evaluate_command(*arguments).stdout)
    corrected = [
        replace(item, positions_m=item.positions_m * 2, label_digest="corrected")
        for item in FeatureCache.open(labelled_cache).labels
    ]
    with WriteSession(labelled_cache) as session:
        session.add_labels(corrected)
    after = json.loads(evaluate_command(*arguments).stdout)
    errors_m = [found["entries"][0]["metrics"]["ade_m"]["mean"] for found in (before, after)]
    assert errors_m[0] != errors_m[1]
    again = json.loads(evaluate_command(*arguments).stdout)
    assert again == after


def test_joints_that_were_never_seen_before_the_split_count_for_no_method(
    train_run: TrainRun, labelled_cache: Path, evaluate_command: Callable[..., Result]
) -> None:
    """The thumb appears with the future of the first clip: that clip's thumb is left out, and counted so."""
    run = train_run()
    before = json.loads(evaluate_command("--run", run, "--json").stdout)
    table = FeatureCache.open(labelled_cache).labels
    with WriteSession(labelled_cache) as session:
        session.add_labels([unseen_before(item, frame=8, joint=1) for item in table])
    after = json.loads(evaluate_command("--run", run, "--json").stdout)
    first_clips = before["num_clips"] // 2
    assert before["joint_frames"]["labelled"] == after["joint_frames"]["labelled"]
    assert before["joint_frames"]["counted"] - after["joint_frames"]["counted"] == first_clips * 4
    share = 100 * after["joint_frames"]["counted"] / after["joint_frames"]["labelled"]
    assert f"({share:.1f} %)" in (run / "eval-test.md").read_text()


def unseen_before(labels: VideoLabels, *, frame: int, joint: int) -> VideoLabels:
    confidences = labels.confidences.copy()
    confidences[:frame, joint] = 0.0
    return replace(labels, confidences=confidences, label_digest="second")


def test_wrong_use_is_refused_in_one_line(
    train_run: TrainRun, tmp_path: Path, evaluate_command: Callable[..., Result]
) -> None:
    run = train_run("runs/jepa-0", variant="jepa")
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ((), "no run given"),
        (("--runs", tmp_path / "empty"), "holds no finished training run"),
        (("--run", run, "--run", train_run("runs/jepa-1", variant="jepa", seed=1)), "--out"),
    ):
        result = evaluate_command(*arguments)
        assert result.returncode == 2, result
        assert result.stderr.startswith("error: ")
        assert words in result.stderr
        assert result.stdout == ""


def test_what_another_process_writes_is_refused_and_left_as_it_is(
    train_run: TrainRun, tmp_path: Path, evaluate_command: Callable[..., Result]
) -> None:
    """This process holds the folders that the command would write."""
    run, out = train_run(), tmp_path / "out"
    with WriteLock(run, remedy=""):
        for flags in ((), ("--rollout", "2")):
            refused = evaluate_command("--run", run, *flags)
            assert refused.returncode == 2
            assert f"error: '{run}' is being written by process {os.getpid()} of " in refused.stderr
    assert not list(run.glob("eval-*"))
    assert not list(run.glob("rollout-*"))
    assert evaluate_command("--run", run).returncode == 0
    with WriteLock(out, remedy=""):
        refused = evaluate_command("--run", run, "--out", out)
        assert refused.returncode == 2
        assert f"'{out}' is being written by process {os.getpid()} of " in refused.stderr
    assert not list(out.glob("comparison*"))
    assert evaluate_command("--run", tmp_path / "typo").returncode == 2
    assert not (tmp_path / "typo").exists(), "a folder without a run is not made"
