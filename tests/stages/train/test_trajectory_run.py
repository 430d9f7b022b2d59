"""Runs that predict hands: which clips and joints they train on, that they learn, and that they resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from thinkjepa.cache import FeatureCache, LabelTable, WriteSession
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.data.trajectories import Supervision
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.signals import Stopping
from thinkjepa.stages.train.data.features import Features, choose_features
from thinkjepa.stages.train.events import RunStarts, TrainEvent, report_nothing
from thinkjepa.stages.train.fit.loop import Trainer, epoch_losses, train_epoch, validation_losses
from thinkjepa.stages.train.fit.losses import DISTANCE_M
from thinkjepa.stages.train.fit.optimizer import make_optimizer
from thinkjepa.stages.train.fit.processes import make_accelerator
from thinkjepa.stages.train.fit.state import FitState, PartialEpoch
from thinkjepa.stages.train.model.config import HeadShape
from thinkjepa.stages.train.model.forecast import build_model
from thinkjepa.stages.train.plan import divide_clips, plan_run
from thinkjepa.stages.train.run import ignore_steps, train, untrained_model
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]

TINY = TrainSettings(
    epochs=2, batch_size=4, depth=2, width=24, heads=2, fusion_width=16, head_width=32, device="cpu"
)
CPU = torch.device("cpu")


def run(cache: Path, out: Path, settings: TrainSettings = TINY, **overrides: Any) -> dict[str, Any]:
    progress, report = overrides.pop("progress", ignore_steps), overrides.pop("report", report_nothing)
    return train(cache, out, replace(settings, **overrides), progress=progress, report=report)


def run_features(cache: Path, **overrides: Any) -> Features:
    return choose_features(FeatureCache.open(cache), replace(TINY, **overrides))


def record_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "run.json").read_text()))


@pytest.mark.parametrize(
    ("variant", "anchor"),
    [("thinkjepa", "none"), ("thinkjepa", "last_pose"), ("jepa", "none"), ("vlm", "none")],
)
def test_eight_clips_are_learned_by_heart_to_5_mm(
    latent_cache: BuildCache, variant: str, anchor: str
) -> None:
    rate, steps = 5e-4, 700
    settings = replace(
        TINY,
        variant=variant,
        anchor=anchor,
        head_inputs="latents",  # from poses, the ridge knows these clips before the first step
        epochs=1,
        schedule="cosine",
        warmup=0.3,
        batch_size=8,
        clips_per_forward=8,
        learning_rate=rate,
        gate_learning_rate=rate,
        head_learning_rate=rate,
        trajectory_weight=1000.0,
        width=96,
        heads=6,
        head_width=128,
    )
    cache = latent_cache(num_videos=4, labelled=4)
    features = choose_features(FeatureCache.open(cache), settings)
    clips = tuple(features.clips.clip_ids.to_pylist())
    divided = divide_clips(features, cache, SplitRule())
    plan = plan_run(
        cache,
        settings,
        features,
        replace(divided, ids={"train": clips, "validation": clips}),
        num_processes=1,
    )
    model = untrained_model(plan)
    optimizer = make_optimizer(model, settings)
    trainer = Trainer(model, optimizer, features, make_accelerator(settings, cache.parent), settings)
    before_m = float(validation_losses(trainer, clips)[DISTANCE_M])
    train_epoch(
        trainer,
        [clips] * steps,
        FitState(),
        progress=ignore_steps,
        save=lambda state: None,
        stop=Stopping(),
    )
    assert len(clips) == 8
    assert float(validation_losses(trainer, clips)[DISTANCE_M]) < 0.005 < 0.01 < before_m


def test_clips_without_a_known_joint_are_in_no_mean_of_distances(latent_cache: BuildCache) -> None:
    """Half of the clips have hands in view: a mean over all clips would be half of theirs."""
    cache = latent_cache(num_videos=8, labelled=8, out_of_view=4)
    features = choose_features(FeatureCache.open(cache), TINY)
    plan = plan_run(cache, TINY, features, divide_clips(features, cache, SplitRule()), num_processes=1)
    model = untrained_model(plan)
    trainer = Trainer(model, make_optimizer(model, TINY), features, make_accelerator(TINY, cache), TINY)
    known = [
        clip_id
        for clip_id in features.clips.clip_ids.to_pylist()
        if features.supervision.trajectory(clip_id).future_confidence.any()  # type: ignore[union-attr]
    ]
    unknown = sorted(set(features.clips.clip_ids.to_pylist()) - set(known))
    assert len(known) == len(unknown) == 8
    of_known, of_all = (validation_losses(trainer, clips) for clips in (known, sorted(known + unknown)))
    assert float(of_known[DISTANCE_M]) > 0.01
    assert float(of_all[DISTANCE_M]) == pytest.approx(float(of_known[DISTANCE_M]), rel=1e-6)
    without = epoch_losses(1, PartialEpoch(), validation_losses(trainer, unknown), num_clips=1)
    assert without.validation_distance_m is None


def test_hands_are_predicted_where_there_are_labels(latent_cache: BuildCache, tmp_path: Path) -> None:
    labelled, plain = latent_cache(name="labelled", labelled=16), latent_cache(name="plain")
    run(labelled, tmp_path / "hands")
    run(labelled, tmp_path / "latents", task="latent")
    run(plain, tmp_path / "unlabelled")
    tasks = [record_of(tmp_path / name)["settings"]["task"] for name in ("hands", "latents", "unlabelled")]
    assert tasks == ["trajectory", "latent", "latent"]
    assert record_of(tmp_path / "hands")["reference_frames"] == ["camera"]
    assert record_of(tmp_path / "hands")["model"]["head"]["joints"] == [
        "rightIndexFingerTip",
        "rightThumbTip",
        "rightHand",
    ]
    assert record_of(tmp_path / "unlabelled")["model"]["head"] is None
    with pytest.raises(StageError, match=r"no clip has hand labels .* has no labels.*thinkjepa-data import"):
        run(plain, tmp_path / "none", task="trajectory")


def test_too_few_labels_for_the_split_are_named_as_the_reason(
    latent_cache: BuildCache, tmp_path: Path
) -> None:
    cache = latent_cache(labelled=1)
    run(cache, tmp_path / "latents", task="latent")
    with pytest.raises(StageError, match=r"hand labels none is in .*--task latent"):
        run(cache, tmp_path / "hands")


def test_clips_without_labels_are_left_out_and_counted(latent_cache: BuildCache, tmp_path: Path) -> None:
    metrics = run(latent_cache(num_videos=16, labelled=12), tmp_path / "run")
    assert sum(metrics["num_clips"].values()) == 24
    assert metrics["unlabelled"]["clips"] == 8
    assert metrics["unlabelled"]["first"].endswith("has no labels")


@pytest.mark.parametrize("variant", ["thinkjepa", "jepa", "vlm"])
def test_the_head_leaves_the_forecaster_as_it_starts_without_one(model_shape: Any, variant: str) -> None:
    shape = model_shape(variant)
    head = HeadShape(joints=("rightHand",), frames_per_step=2, anchor="none", width=16)
    without, with_head = (build_model(replace(shape, head=item), seed=3) for item in (None, head))
    weights = with_head.state_dict()
    assert without.state_dict().keys() == {name for name in weights if not name.startswith("head.")}
    assert all(torch.equal(weights[name], values) for name, values in without.state_dict().items())


def test_only_the_chosen_joints_are_trained(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache = latent_cache(labelled=16)
    assert run(cache, tmp_path / "run", joints="rightThumbTip")["num_joints"] == 1
    with pytest.raises(StageError, match="no label has 'leftHand'"):
        run(cache, tmp_path / "other", joints="leftHand")


def test_a_joint_that_is_never_known_is_no_output_of_the_head(
    latent_cache: BuildCache, tmp_path: Path
) -> None:
    cache = latent_cache(labelled=16)
    hand = [
        replace(item, confidences=item.confidences.copy(), label_digest="blind")
        for item in FeatureCache.open(cache).labels
    ]
    for labels in hand:
        labels.confidences[:, labels.joint_names.index("rightThumbTip")] = 0
    with WriteSession(cache) as session:
        session.add_labels(hand)
    assert run(cache, tmp_path / "run")["num_joints"] == 2
    assert record_of(tmp_path / "run")["model"]["head"]["joints"] == ["rightIndexFingerTip", "rightHand"]
    weights = next((tmp_path / "run" / "checkpoints").iterdir())
    assert load_file(weights)["head.ridge.bias"].shape[2] == 2
    with pytest.raises(StageError, match="'rightThumbTip' is labelled and never known"):
        run(cache, tmp_path / "named", joints="rightThumbTip,rightHand")


def test_corrected_labels_make_another_run(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache = latent_cache(labelled=16)
    first = run(cache, tmp_path / "run")
    assert run(cache, tmp_path / "run") == first
    labels = next(iter(FeatureCache.open(cache).labels))
    corrected = replace(labels, positions_m=labels.positions_m + 1, label_digest="corrected")
    with WriteSession(cache) as session:
        assert session.add_labels([corrected]) == 1
    with pytest.raises(StageError, match="finished run that differs in labels"):
        run(cache, tmp_path / "run")


@pytest.mark.parametrize("variant", ["thinkjepa", "vlm", "poses"])
def test_an_interrupted_run_continues_to_the_same_files(
    latent_cache: BuildCache, tmp_path: Path, variant: str
) -> None:
    cache = latent_cache(labelled=16)
    run(cache, tmp_path / "whole", epochs=4, variant=variant)

    def stop_in_epoch_3(*, epoch: int, **_: Any) -> None:
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cache, tmp_path / "cut", epochs=4, variant=variant, progress=stop_in_epoch_3)
    run(cache, tmp_path / "cut", epochs=4, variant=variant)
    for file in ("run.json", "metrics.json", "curve.csv"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes()


def test_targets_are_the_labels_at_the_frames_of_each_step(latent_cache: BuildCache) -> None:
    features = run_features(latent_cache(labelled=16), joints="rightHand")
    assert features.supervision is not None
    clip = features.clips[3]
    target = features.trajectories([clip.clip_id], CPU)
    labels = features.supervision.labels_of(clip.clip_id)
    assert labels.camera_poses is not None
    hand = labels.joint_names.index("rightHand")
    origin = labels.camera_poses[clip.observed_frames[-1], :3, 3]
    for step, frame in ((0, 0), (0, 1), (1, 0), (1, 1)):
        number = clip.future_frames[0][2 * step + frame]
        np.testing.assert_allclose(
            target.future_m[0, step, frame, 0].numpy(), labels.positions_m[number, hand] - origin, atol=1e-6
        )
    last = labels.positions_m[clip.observed_frames[-1], hand] - origin
    np.testing.assert_allclose(target.poses.last_pose_m[0, 0].numpy(), last, atol=1e-6)


def test_nothing_a_prediction_needs_comes_from_the_future(latent_cache: BuildCache) -> None:
    features = run_features(latent_cache(labelled=16))
    supervision = features.supervision
    assert isinstance(supervision, Supervision)
    clip = features.clips[0]
    labels = supervision.labels_of(clip.clip_id)
    assert labels.camera_poses is not None
    seen = features.trajectories([clip.clip_id], CPU)
    future = slice(clip.split_frame, None)
    positions_m, camera_poses = labels.positions_m.copy(), labels.camera_poses.copy()
    positions_m[future] += 5
    camera_poses[future, :3, 3] += 5
    changed = replace(labels, positions_m=positions_m, camera_poses=camera_poses)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervision, "_of", lambda _: changed)
        after = features.trajectories([clip.clip_id], CPU)
    assert torch.equal(seen.poses.positions_m, after.poses.positions_m)
    assert torch.equal(seen.poses.known, after.poses.known)
    assert float((after.future_m - seen.future_m).abs().min()) > 1


def test_a_training_warns_of_labels_in_millimetres(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache, warnings = latent_cache(labelled=16), list[str]()

    def warned(event: TrainEvent) -> None:
        if isinstance(event, RunStarts):
            warnings.append(event.labels_warning)

    run(cache, tmp_path / "metres", report=warned, epochs=1)
    first, second, *_ = LabelTable(cache)
    with WriteSession(cache) as session:
        for item in (first, second):
            digest = f"{item.label_digest} in millimetres"
            session.add_labels([replace(item, positions_m=1000 * item.positions_m, label_digest=digest)])
    run(cache, tmp_path / "millimetres", report=warned, epochs=1)
    names = sorted((first.video, second.video))
    assert warnings == [
        "",
        f"warning: joints of {names[0]!r} and of 1 more are more than 3 m apart: are positions in metres? "
        "`thinkjepa-data check` tells more",
    ]
