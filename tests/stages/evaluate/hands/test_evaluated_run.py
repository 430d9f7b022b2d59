"""A run with joints, from its cache to the figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from thinkjepa.cache import FeatureCache, VideoLabels
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.data.trajectories import Supervision, to_world
from thinkjepa.stages.evaluate.evaluation import evaluate
from thinkjepa.stages.evaluate.runs import TrainedRun

TrainRun = Callable[..., Path]
TRAJECTORY_METHODS = (
    "model",
    "shuffled_guidance",
    "latent_persistence",
    "readout_ceiling",
    "ridge",
    "constant_pose",
    "constant_velocity",
    "damped_velocity",
    "mean_displacement",
    "mean_pose",
)


def joint_truth(run: Path, rows: list[dict]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Labelled positions `(frame, joint, 3)`, which count `(frame, joint)`, and the camera, of each row."""
    cache = FeatureCache.open(run.parent / "cache")
    shape = TrainedRun.open(run).shape.head
    supervision = Supervision(cache.labels, cache.select(), joints=",".join(shape.joints))
    found = []
    for row in rows:
        trajectory = supervision.trajectory(row["clip_id"])
        seen = (trajectory.observed_confidence > 0).any(axis=0)
        counted = (trajectory.future_confidence[0] > 0) & seen
        found.append((trajectory.future_m[0], counted, trajectory.camera_pose))
    return found


def rows_of(run: Path) -> list[dict]:
    return pq.read_table(run / "eval-test.parquet").to_pylist()


def test_the_headline_has_the_best_method_without_training(train_run: TrainRun) -> None:
    run = train_run()
    joints = evaluate(run)["trajectory"]
    headline = json.loads((run / "test.json").read_text())
    assert {name: headline[name] for name in ("ade_m", "fde_m", "acc_5cm")} == {
        name: round(joints["model"][name], 4) for name in ("ade_m", "fde_m", "acc_5cm")
    }
    assert joints["constant_velocity"]["ade_m"] < joints["constant_pose"]["ade_m"]
    assert headline["baseline_m"] == round(joints["constant_velocity"]["ade_m"], 4)


def test_ade_from_the_stored_predictions_is_the_reported_one_in_camera_and_world_frame(
    train_run: TrainRun,
) -> None:
    run = train_run()
    result = evaluate(run)
    rows = rows_of(run)
    in_camera, in_world = [], []
    for row, (future_m, counted, pose) in zip(rows, joint_truth(run, rows), strict=True):
        predicted_m = np.array(row["predicted_joints_m"], dtype=np.float32).reshape(future_m.shape)
        np.testing.assert_allclose(np.reshape(row["camera_pose"], (4, 4)), pose)
        distance = np.linalg.norm(predicted_m.astype(np.float64) - future_m, axis=-1)
        moved = np.linalg.norm(
            to_world(predicted_m, pose).astype(np.float64) - to_world(future_m, pose), axis=-1
        )
        in_camera.append(distance[counted].mean())
        in_world.append(moved[counted].mean())
        assert row["model_ade_m"] == pytest.approx(in_camera[-1], abs=1e-9)
    assert result["trajectory"]["model"]["ade_m"] == pytest.approx(np.mean(in_camera), abs=1e-9)
    assert np.mean(in_world) == pytest.approx(np.mean(in_camera), abs=1e-6)


def test_every_method_is_measured_on_the_same_joint_frames(train_run: TrainRun) -> None:
    result = evaluate(train_run())
    assert tuple(result["trajectory"]) == TRAJECTORY_METHODS
    assert tuple(result["latent"]) == ("model", "shuffled_guidance", "latent_persistence", "mean_latent")
    assert result["joint_frames"]["clips"] == result["num_clips"]
    assert result["joint_frames"]["counted"] == result["joint_frames"]["labelled"]


def test_constant_velocity_is_exact_for_even_motion_and_constant_pose_is_not(train_run: TrainRun) -> None:
    trajectory = evaluate(train_run())["trajectory"]
    assert trajectory["constant_velocity"]["ade_m"] < 1e-6
    assert trajectory["constant_velocity"]["acc_5cm"] == 1
    assert trajectory["constant_pose"]["ade_m"] > 0.01


def test_jepa_has_no_guidance_to_shuffle(train_run: TrainRun) -> None:
    result = evaluate(train_run(variant="jepa"))
    assert "shuffled_guidance" not in result["trajectory"]
    assert "shuffled_guidance" not in result["latent"]


def test_the_parquet_file_has_each_test_clip_with_horizon_and_curves(train_run: TrainRun) -> None:
    run = train_run()
    result = evaluate(run)
    rows = rows_of(run)
    clips = json.loads((run / "split.json").read_text())["clips"]["test"]
    assert [row["clip_id"] for row in rows] == clips
    for row in rows:
        assert row["horizon_s"] == pytest.approx([0.15, 0.35])
        assert row["future_frames"] == [row["split_frame"] + step for step in range(4)]
        assert row["model_ade_m"] == pytest.approx(np.mean(row["model_ade_m_by_step"]))
        assert row["model_l2"] == pytest.approx(np.mean(row["model_l2_by_step"]))
    for step in range(2):
        mean = np.mean([row["model_ade_m_by_step"][step] for row in rows])
        assert result["horizon"][step]["model"]["ade_m"] == pytest.approx(mean)


def test_clips_of_tasks_that_training_has_not_seen_have_figures_of_their_own(train_run: TrainRun) -> None:
    """Eight folders of two videos each: some folders have a video in training, others none."""
    run = train_run(split=SplitRule(group_by="video", test_fraction=0.6))
    result, rows = evaluate(run), rows_of(run)
    features = TrainedRun.open(run).features(None)
    videos = {clip.clip_id: clip.video for clip in features.clips}
    trained = {videos[clip_id].split("/")[0] for clip_id in TrainedRun.open(run).clip_ids("train")}
    seen = [row["video"].split("/")[0] in trained for row in rows]
    assert [row["task_seen"] for row in rows] == [float(item) for item in seen]
    assert len(set(seen)) == 2, "the control"
    for record, label in zip(result["by_task"], ("seen in training", "unseen"), strict=True):
        chosen = [row["model_ade_m"] for row in rows if row["task_seen"] == (label != "unseen")]
        assert (record["task"], record["num_clips"]) == (label, len(chosen))
        assert record["trajectory"]["model"]["ade_m"]["mean"] == pytest.approx(np.mean(chosen))


def test_validation_distance_is_the_one_that_training_reported(train_run: TrainRun) -> None:
    """Confidences differ between the joints of a clip. They weigh in the loss, and in no distance."""
    run = train_run()
    result = evaluate(run, split="validation")
    reported = json.loads((run / "metrics.json").read_text())["validation_distance_m"]
    assert result["trajectory"]["model"]["ade_m"] == pytest.approx(reported, rel=1e-5)


@pytest.mark.parametrize("variant", ["thinkjepa", "jepa", "vlm", "poses"])
def test_perturbing_the_future_changes_no_prediction(
    train_run: TrainRun, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    """The test clips' latents and labels are others after the split: every method's forecast keeps its bits.

    Those of the training clips stay, from which models and some baselines have learned.
    """
    run = train_run(variant=variant)
    before = forecasts_of(run, monkeypatch)
    with monkeypatch.context() as patch:
        replace_feature(patch, "future", run)
        replace_labels(patch, run, of="future")
        after = forecasts_of(run, patch)
    assert before.keys() == after.keys()
    for method, values in before.items():
        assert torch.equal(values, after[method]), method


def test_perturbing_what_was_observed_changes_predictions(
    train_run: TrainRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positive control: each method notices what it stands on."""
    run, heads = train_run(), {"model", "shuffled_guidance", "latent_persistence", "ridge"}
    before = forecasts_of(run, monkeypatch)
    for replacement, moved in (
        ("observed", {"model", "shuffled_guidance", "latent_persistence"}),
        ("pooled", {"model", "shuffled_guidance"}),
        ("labels", heads | {"constant_pose", "constant_velocity", "damped_velocity", "mean_displacement"}),
    ):
        with monkeypatch.context() as patch:
            if replacement == "labels":
                replace_labels(patch, run, of="observed")
            else:
                replace_feature(patch, replacement, run)
            after = forecasts_of(run, patch)
        changed = {method for method in before if not torch.equal(before[method], after[method])}
        assert changed == moved, replacement


def forecasts_of(run: Path, patch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """All that each method forecasts on the test clips, as it leaves the forecasting code."""
    from thinkjepa.stages.evaluate import evaluation

    kept: dict[str, list[torch.Tensor]] = {}
    original = evaluation.predict_all

    def keep(*arguments, **options):
        found = original(*arguments, **options)
        for method, predicted in found.items():
            parts = [part for part in (predicted.latents, predicted.joints_m) if part is not None]
            kept.setdefault(method, []).extend(part.flatten() for part in parts)
        return found

    with patch.context() as inner:
        inner.setattr(evaluation, "predict_all", keep)
        evaluate(run)
    return {method: torch.cat(parts) for method, parts in kept.items()}


def replace_feature(patch: pytest.MonkeyPatch, array: str, run: Path) -> None:
    """Every read of this array gives other values of the test clips."""
    original, test_ids = FeatureCache.read, set(TrainedRun.open(run).clip_ids("test"))

    def altered(self, set_name, name, clip_ids, **rest):
        values = original(self, set_name, name, clip_ids, **rest)
        if name == array:
            chosen = torch.tensor([clip_id in test_ids for clip_id in clip_ids])
            values[chosen] = values[chosen].flip(-1) * 3 + 7
        return values

    patch.setattr(FeatureCache, "read", altered)


def replace_labels(patch: pytest.MonkeyPatch, run: Path, *, of: str) -> None:
    """Joints and cameras of the test videos are others before or from each clip's split on."""
    from thinkjepa.stages.data import trajectories

    original = trajectories.clip_trajectory
    test_videos = {clip_id.split("@")[0] for clip_id in TrainedRun.open(run).clip_ids("test")}

    def altered(labels: VideoLabels, joints, *, observed_frames, **rest):
        if labels.video_digest[:16] not in test_videos:
            return original(labels, joints, observed_frames=observed_frames, **rest)
        after_split = np.arange(labels.num_frames) > np.max(observed_frames)
        chosen = after_split if of == "future" else ~after_split
        positions_m = np.where(chosen[:, None, None], labels.positions_m * 2 + 5, labels.positions_m)
        confidences = labels.confidences
        poses = labels.camera_poses.copy()
        if of == "future":
            confidences = np.where(chosen[:, None], 1 - labels.confidences, labels.confidences)
            poses[chosen, :3, 3] += 9
        other = VideoLabels(
            labels.source,
            labels.reference_frame,
            labels.joint_names,
            positions_m.astype(np.float32),
            confidences.astype(np.float32),
            poses,
            video=labels.video,
            video_digest=labels.video_digest,
            label_digest=labels.label_digest,
        )
        return original(other, joints, observed_frames=observed_frames, **rest)

    patch.setattr(trajectories, "clip_trajectory", altered)
