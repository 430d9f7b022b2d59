"""Baselines learned from a run's training clips, against numpy on the labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from thinkjepa.stages.evaluate.evaluation import evaluate
from thinkjepa.stages.evaluate.learned import DAMPING_S, learn_motion
from thinkjepa.stages.evaluate.motion import damped_velocity, future_times_s
from thinkjepa.stages.evaluate.runs import TrainedRun

TrainRun = Callable[..., Path]


def training_joints(run: TrainedRun) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """By clip: future positions `(frame, joint, 3)`, which of them count, last poses `(joint, 3)`."""
    supervision = run.features(None).supervision
    found = []
    for clip_id in run.clip_ids("train"):
        item = supervision.trajectory(clip_id)
        known = item.observed_confidence > 0
        last_m = np.zeros((known.shape[1], 3))
        for joint, column in enumerate(known.T):
            if column.any():
                last_m[joint] = item.observed_m[np.flatnonzero(column)[-1], joint]
        found.append((item.future_m[0], (item.future_confidence[0] > 0) & known.any(axis=0), last_m))
    return found


def test_means_are_those_of_the_training_clips_joint_frames_that_count(train_run: TrainRun) -> None:
    run = TrainedRun.open(train_run())
    learned = learn_motion(run.features(None), run.clip_ids("train"))
    future_m, counted, last_m = (np.stack(column) for column in zip(*training_joints(run), strict=True))
    assert not counted.all(), "the left hand is unknown in every other video"
    weight = counted[..., None].astype(float)
    displacement_m = (weight * (future_m - last_m[:, None])).sum(0) / weight.sum(0)
    np.testing.assert_allclose(learned.displacement_m.flatten(0, 1), displacement_m, atol=1e-6)
    pose_m = (weight * future_m).sum((0, 1)) / weight.sum((0, 1))
    np.testing.assert_allclose(learned.pose_m, pose_m, atol=1e-6)


def test_the_damping_is_the_one_of_the_smallest_distance_on_training_clips(train_run: TrainRun) -> None:
    """These hands move evenly for ever, so that the longest time constant is the best."""
    run = TrainedRun.open(train_run())
    features = run.features(None)
    learned = learn_motion(features, run.clip_ids("train"))
    clips = [clip for clip in features.clips if clip.clip_id in run.clip_ids("train")]
    truth = features.trajectories([clip.clip_id for clip in clips], torch.device("cpu"))
    ahead_s = future_times_s(clips, windows=1)
    future_m, counted, _ = (np.stack(column) for column in zip(*training_joints(run), strict=True))
    means = []
    for damping_s in DAMPING_S:
        error_m = damped_velocity(truth.poses, ahead_s, damping_s=damping_s).numpy() - future_m
        means.append(np.linalg.norm(error_m, axis=-1)[counted].mean())
    assert learned.damping_s == DAMPING_S[int(np.argmin(means))] == 3.2


def test_test_clips_teach_nothing(train_run: TrainRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrainedRun.open(train_run())
    features = run.features(None)
    before = learn_motion(features, run.clip_ids("train"))
    held_out = {*run.clip_ids("test"), *run.clip_ids("validation")}
    original = type(features.supervision).trajectory

    def altered(self, clip_id):
        found = original(self, clip_id)
        return replace(found, future_m=found.future_m + 3) if clip_id in held_out else found

    monkeypatch.setattr(type(features.supervision), "trajectory", altered)
    after = learn_motion(features, run.clip_ids("train"))
    assert torch.equal(before.displacement_m, after.displacement_m)
    assert torch.equal(before.pose_m, after.pose_m)
    monkeypatch.undo()
    assert evaluate(run.path)["training_clips_lacking"] == 0


def test_without_the_training_clips_what_is_learned_from_them_is_left_out_and_told(
    train_run: TrainRun,
) -> None:
    run = train_run()
    split = json.loads((run / "split.json").read_text())
    split["clips"]["train"].append("feedfeedfeedfeed@8")
    (run / "split.json").write_text(json.dumps(split))
    result = evaluate(run)
    assert result["training_clips_lacking"] == 1
    assert "constant_velocity" in result["trajectory"]
    assert not {"damped_velocity", "mean_displacement", "mean_pose"} & set(result["trajectory"])


@pytest.mark.parametrize("head_learning_rate", [1e-3, 0.3])
def test_no_head_is_worse_than_its_ridge_on_the_clips_that_choose(
    train_run: TrainRun, head_learning_rate: float
) -> None:
    """Nothing is left of a head that training has ruined."""
    run = train_run(head_learning_rate=head_learning_rate)
    by_method = evaluate(run, split="validation", device="cpu")["trajectory"]
    own, ridge = (by_method[name]["ade_m"] for name in ("model", "ridge"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert own <= ridge + 1e-6
    assert own == pytest.approx(metrics["validation_distance_m"], abs=1e-6)
    if head_learning_rate == 0.3:
        assert (own, metrics["head_share"]) == (pytest.approx(ridge, abs=1e-6), 0.0)


def test_a_head_of_latents_alone_counts_whole(train_run: TrainRun) -> None:
    run = train_run(head_learning_rate=0.3, head_inputs="latents")
    assert json.loads((run / "metrics.json").read_text())["head_share"] == 1.0
