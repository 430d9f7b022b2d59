"""Joints below the least confidence of a run are unknown to all of it, from the head to the baselines."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from thinkjepa.cache import FeatureCache, VideoLabels
from thinkjepa.stages.data.trajectories import Supervision, clip_trajectory
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.evaluation import evaluate

LEAST = 0.4


def mixed(labels: VideoLabels) -> VideoLabels:
    """A third of the joints' samples with confidence 0.2, others with the least that counts, or more."""
    rng = np.random.default_rng(int(labels.video_digest[:8], 16))
    drawn = rng.choice([0.2, LEAST, 0.9], labels.confidences.shape).astype(np.float32)
    return replace(labels, confidences=np.where(labels.confidences > 0, drawn, np.float32(0)))


def garbled(labels: VideoLabels) -> VideoLabels:
    """The same, with the unsure joints elsewhere."""
    labels = mixed(labels)
    unsure = (labels.confidences < LEAST)[..., None]
    return replace(labels, positions_m=np.where(unsure, labels.positions_m * 2 + 5, labels.positions_m))


def emptied(labels: VideoLabels) -> VideoLabels:
    """The same, with confidence 0 for the unsure joints."""
    labels = garbled(labels)
    return replace(labels, confidences=np.where(labels.confidences < LEAST, 0, labels.confidences))


def numbers_of(run: Path) -> tuple[dict[str, Any], str]:
    """The figures that a training reports, and the rows of its evaluation."""
    evaluate(run)
    rows = pq.read_table(run / "eval-test.parquet").to_pylist()
    return json.loads((run / "metrics.json").read_text()), json.dumps(rows)


def test_unsure_joints_change_no_number_of_a_run(
    train_run: Callable[..., Path], relabelled_cache: Callable[..., Path]
) -> None:
    """Elsewhere or unlabelled: training, head, metrics and baselines are the same to the last bit."""
    found = {}
    for name, change in {"mixed": mixed, "garbled": garbled, "emptied": emptied}.items():
        least = {} if change is emptied else {"min_confidence": LEAST}
        cache = relabelled_cache(name, change)
        found[name] = numbers_of(train_run(f"run-{name}", cache=cache, **least))
    assert found["mixed"] == found["garbled"] == found["emptied"]
    plain = numbers_of(train_run("plain", cache=relabelled_cache("plain-cache", mixed)))
    counted, all_of_them = (
        sum(row["labelled_joint_frames"] for row in json.loads(rows)) for _, rows in (found["mixed"], plain)
    )
    assert 0 < counted < all_of_them
    assert plain[0]["validation_loss"] != found["mixed"][0]["validation_loss"]


def test_the_least_confidence_itself_counts_and_zero_changes_nothing(labelled_cache: Path) -> None:
    labels = mixed(next(iter(FeatureCache.open(labelled_cache).labels)))
    frames: dict[str, Any] = {"observed_frames": range(8), "future_frames": [range(8, 16)]}
    whole = clip_trajectory(labels, labels.joint_names, **frames)
    np.testing.assert_array_equal(whole.observed_confidence, labels.confidences[:8])
    sure = clip_trajectory(labels, labels.joint_names, **frames, min_confidence=LEAST)
    kept = labels.confidences[8:16] >= np.float32(LEAST)
    np.testing.assert_array_equal(sure.future_confidence[0], labels.confidences[8:16] * kept)
    assert (sure.future_confidence == np.float32(LEAST)).any()


def test_a_joint_that_is_never_sure_is_no_output_of_the_head(labelled_cache: Path) -> None:
    """All joints of the right hand have 0.5, the left hand 0.9 in every other video."""
    cache = FeatureCache.open(labelled_cache)
    clips = cache.select()
    ids = clips.clip_ids.to_pylist()
    known = Supervision(cache.labels, clips, joints="auto", min_confidence=0.8).knowing(ids)
    assert known.joints == ("leftHand",)
    with pytest.raises(StageError, match=r"confidence below 0.95 in .* lower --min-confidence, or --task"):
        Supervision(cache.labels, clips, joints="auto", min_confidence=0.95).knowing(ids)
