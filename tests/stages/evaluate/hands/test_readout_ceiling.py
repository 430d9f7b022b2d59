"""The head on true future latents: reported beside a run, never among what can be chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from thinkjepa.cache import FeatureCache
from thinkjepa.pipeline.report.evaluation import evaluate_run, write_comparison
from thinkjepa.stages.evaluate.evaluation import evaluate
from thinkjepa.stages.evaluate.runs import TrainedRun, read_evaluations
from thinkjepa.stages.progress import NoProgress

TrainRun = Callable[..., Path]


def joints_read_off_the_truth(run: TrainedRun, clip_ids: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """Distances `(clip, step, frame, joint)` of the head on stored future latents, and which count."""
    batch = run.features(None).batch(clip_ids, torch.device("cpu"))
    with torch.no_grad():
        joints_m = run.model().head(batch.future, batch.poses).double().numpy()
    truth = batch.trajectory
    counted = (truth.future_confidence > 0) & (truth.last_known[:, None, None] > 0)
    return np.linalg.norm(joints_m - truth.future_m.double().numpy(), axis=-1), counted.numpy()


def test_it_is_the_heads_error_on_the_stored_future_latents(train_run: TrainRun) -> None:
    run = train_run()
    result = evaluate(run)
    distance, counted = joints_read_off_the_truth(TrainedRun.open(run), TrainedRun.open(run).clip_ids("test"))
    by_clip = [values[chosen].mean() for values, chosen in zip(distance, counted, strict=True)]
    assert result["trajectory"]["readout_ceiling"]["ade_m"] == pytest.approx(np.mean(by_clip), rel=1e-6)
    with np.errstate(invalid="ignore"):
        by_frame = np.where(counted, distance, 0).sum(2) / counted.sum(2)
    means = np.nanmean(by_frame, axis=0)
    for joint, name in enumerate(result["joints"]):
        found = result["ade_m_by_joint"]["readout_ceiling"][name]
        assert found == pytest.approx(means[:, joint], rel=1e-6)


def test_errors_by_joint_and_step_of_the_model_are_those_of_its_stored_predictions(
    train_run: TrainRun,
) -> None:
    run = train_run()
    result = evaluate(run)
    rows = pq.read_table(run / "eval-test.parquet").to_pylist()
    truth = TrainedRun.open(run).features(None).batch([row["clip_id"] for row in rows], torch.device("cpu"))
    future_m = truth.trajectory.future_m.numpy().astype(float)
    predicted_m = np.array([row["predicted_joints_m"] for row in rows]).reshape(future_m.shape)
    known = truth.trajectory.future_confidence.numpy() > 0  # every joint that is known is seen before, too
    distance = np.where(known, np.linalg.norm(predicted_m - future_m, axis=-1), np.nan)
    with pytest.warns(RuntimeWarning, match="empty slice"):
        means = np.nanmean(np.nanmean(distance, axis=2), axis=0)
    assert np.isnan(distance).any(), "the left hand is unknown in every other video"
    for joint, name in enumerate(result["joints"]):
        assert result["ade_m_by_joint"]["model"][name] == pytest.approx(means[:, joint], rel=1e-6)


def test_a_joint_that_never_counts_has_no_error(train_run: TrainRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from thinkjepa.stages.evaluate import over_clips

    def without_the_first(confidence: torch.Tensor, last_known: torch.Tensor) -> torch.Tensor:
        counted = (confidence > 0) & (last_known > 0)[:, None, None]
        counted[..., 0] = False
        return counted

    monkeypatch.setattr(over_clips, "counted_joint_frames", without_the_first)
    result = evaluate(train_run())
    first = result["joints"][0]
    for by_joint in result["ade_m_by_joint"].values():
        assert by_joint[first] == [None, None]
        assert None not in by_joint[result["joints"][1]]


@pytest.mark.usefixtures("whole_head")
def test_other_future_latents_change_it_and_no_other_methods_joints(
    train_run: TrainRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_run()
    test_ids = set(TrainedRun.open(run).clip_ids("test"))
    before = evaluate(run)
    original = FeatureCache.read

    def altered(self, set_name, array, clip_ids, **rest):
        values = original(self, set_name, array, clip_ids, **rest)
        if array == "future":
            values[torch.tensor([clip_id in test_ids for clip_id in clip_ids])] += 5
        return values

    monkeypatch.setattr(FeatureCache, "read", altered)
    after = evaluate(run)
    moved = {name for name in before["trajectory"] if before["trajectory"][name] != after["trajectory"][name]}
    assert moved == {"readout_ceiling"}
    assert before["ade_m_by_joint"]["model"] == after["ade_m_by_joint"]["model"]


def test_it_is_labelled_everywhere_and_in_no_ranking_difference_or_verdict(
    train_run: TrainRun, tmp_path: Path
) -> None:
    runs = [train_run("a", variant="jepa"), train_run("b", variant="thinkjepa")]
    pages = [
        evaluate_run(run, split="test", cache_dir=None, device="cpu", progress=NoProgress())[1]
        for run in runs
    ]
    comparison, page = write_comparison(tmp_path / "out", read_evaluations(runs, "test"))
    seeing = [entry for entry in comparison["entries"] if entry["sees_future"]]
    assert [entry["method"] for entry in seeing] == ["readout_ceiling"] * 2
    names = {entry["name"] for entry in seeing}
    assert names == {
        f"{name} head on TRUE future latents (sees the future)" for name in ("jepa", "thinkjepa")
    }
    assert not names & {row["name"] for row in comparison["ranking"]["rows"]}
    assert not names & {item[end] for item in comparison["differences"] for end in ("a", "b")}
    lines = [
        line
        for text in (*pages, page, (tmp_path / "out/comparison.md").read_text())
        for line in text.splitlines()
        if "TRUE future" in line
    ]
    assert lines
    assert all("sees the future" in line or "no prediction sees" in line for line in lines)
    assert not any(word in line for line in lines for word in ("beats", "loses to", "better", "worse"))
