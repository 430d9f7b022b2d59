"""Errors inside and outside the encoder's crop, against numpy on labels and stored predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from latent_cache import TUBELET

from thinkjepa.cache import FeatureCache, VideoLabels, WriteSession
from thinkjepa.stages.data.framing import Framing
from thinkjepa.stages.evaluate.details import views
from thinkjepa.stages.evaluate.details.views import frame_size_px
from thinkjepa.stages.evaluate.evaluation import evaluate
from thinkjepa.stages.evaluate.rollout import evaluate_rollout
from thinkjepa.stages.evaluate.runs import TrainedRun

TrainRun = Callable[..., Path]

WIDTH_PX, HEIGHT_PX, FOCAL_PX = 160, 120, 40.0
INTRINSICS = np.array([[FOCAL_PX, 0, WIDTH_PX / 2], [0, FOCAL_PX, HEIGHT_PX / 2], [0, 0, 1.0]])
FRAMING = {"resize": {"shortest_edge": HEIGHT_PX}, "crop": {"height": HEIGHT_PX, "width": 100}}
"""The encoder sees the columns 30 to 130."""


def with_intrinsics(cache: Path, *, matrix: np.ndarray = INTRINSICS, videos: int | None = None) -> None:
    """Store the labels again, the first videos' with intrinsics, or all."""
    found = FeatureCache.open(cache)
    digests = sorted({clip.video_digest for clip in found.select()})
    labels = [found.labels.find(digest) for digest in digests]
    with WriteSession(cache) as session:
        session.add_labels(
            replace(item, intrinsics=matrix, label_digest="second")
            for item in labels[: len(labels) if videos is None else videos]
        )


@pytest.fixture
def encoder_framing() -> Framing:
    return FRAMING


def seen_by_hand(labels: VideoLabels, frames: list[int], joints: list[str]) -> np.ndarray:
    """True where a joint is in columns 30 to 130 of its own frame's picture, `(frame, joint)`."""
    seen = np.zeros((len(frames), len(joints)), dtype=bool)
    for row, frame in enumerate(frames):
        pose = labels.camera_poses[frame]
        for column, name in enumerate(joints):
            point = labels.positions_m[frame, labels.joint_names.index(name)].astype(float)
            x, y, z = pose[:3, :3].T @ (point - pose[:3, 3])
            if z > 0:
                right, down = FOCAL_PX * x / z + WIDTH_PX / 2, FOCAL_PX * y / z + HEIGHT_PX / 2
                seen[row, column] = 30 <= right < 130 and 0 <= down < HEIGHT_PX
    return seen


def test_errors_are_those_of_joints_in_and_out_of_the_crop(train_run: TrainRun, tmp_path: Path) -> None:
    run = train_run()
    with_intrinsics(tmp_path / "cache", videos=12)
    result = evaluate(run)
    cache, features = FeatureCache.open(tmp_path / "cache"), TrainedRun.open(run).features(None)
    inside, outside, first = [], [], []
    for row in pq.read_table(run / "eval-test.parquet").to_pylist():
        labels = cache.labels.find(row["video_digest"])
        truth = features.supervision.trajectory(row["clip_id"])
        predicted_m = np.reshape(row["predicted_joints_m"], truth.future_m[0].shape)
        distance = np.linalg.norm(predicted_m - truth.future_m[0].astype(float), axis=-1)
        known = truth.future_confidence[0] > 0
        if labels.intrinsics is None:
            assert row["model_inside_view_m"] is None
            assert row["model_outside_view_m"] is None
            continue
        seen = seen_by_hand(labels, row["future_frames"], result["joints"])
        for chosen, name, means in ((seen, "inside", inside), (~seen, "outside", outside)):
            expected = distance[known & chosen].mean() if (known & chosen).any() else None
            assert row[f"model_{name}_view_m"] == (expected and pytest.approx(expected, rel=1e-6))
            means += [] if expected is None else [expected]
        if (chosen := (known & seen)[:TUBELET]).any():
            first.append(distance[:TUBELET][chosen].mean())
    assert inside
    assert outside
    assert result["trajectory"]["model"]["inside_view_m"] == pytest.approx(np.mean(inside), rel=1e-6)
    assert result["trajectory"]["constant_pose"]["outside_view_m"] > 0
    one, all_steps = (
        item["trajectory"]["model"] for item in evaluate_rollout(run, horizons=[1, 2])["horizons"]
    )
    assert one["inside_view_m"]["mean"] == pytest.approx(np.mean(first), rel=1e-6)
    for name in ("inside_view_m", "outside_view_m"):
        assert all_steps[name]["mean"] == pytest.approx(result["trajectory"]["model"][name])


def test_a_crop_that_sees_all_leaves_nothing_outside(
    train_run: TrainRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_run()
    with_intrinsics(tmp_path / "cache")
    monkeypatch.setitem(FRAMING, "crop", None)
    monkeypatch.setattr(views, "set_framing", lambda source: FRAMING)
    monkeypatch.setattr(
        views, "project", lambda positions_m, intrinsics: np.full((*positions_m.shape[:-1], 2), 5.0)
    )
    trajectory = evaluate(run)["trajectory"]["model"]
    assert trajectory["inside_view_m"] == pytest.approx(trajectory["ade_m"])
    assert "outside_view_m" not in trajectory


def test_without_intrinsics_or_a_framing_nothing_is_told_apart(
    train_run: TrainRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_run()
    assert not {"inside_view_m", "outside_view_m"} & set(evaluate(run)["trajectory"]["model"])
    with_intrinsics(tmp_path / "cache")
    assert {"inside_view_m", "outside_view_m"} <= set(evaluate(run)["trajectory"]["model"]), "the control"
    monkeypatch.setattr(views, "set_framing", lambda source: None)
    assert not {"inside_view_m", "outside_view_m"} & set(evaluate(run)["trajectory"]["model"])


def test_the_frame_is_twice_its_principal_point(labelled_cache: Path) -> None:
    labels = FeatureCache.open(labelled_cache).labels
    digest = FeatureCache.open(labelled_cache).select()[0].video_digest
    item = labels.find(digest)
    assert frame_size_px(item) is None, "no intrinsics"
    item = replace(item, intrinsics=INTRINSICS)
    assert frame_size_px(item) == (WIDTH_PX, HEIGHT_PX)
    assert frame_size_px(replace(item, camera_poses=None)) is None, "world labels without a camera"
    assert frame_size_px(replace(item, intrinsics=np.diag([100.0, 100.0, 1.0]))) is None
