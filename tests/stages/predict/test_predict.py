"""The installed `thinkjepa-predict`: the cache's features again, nothing of the future, and a picture."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from new_videos import FPS, NUM_FRAMES, SIZE, frames_of, lossless_video, train_run

from thinkjepa.cache import FeatureCache, VideoLabels, WriteSession, file_digest
from thinkjepa.cache.disk.checksums import replace_listed
from thinkjepa.cache.disk.lock import WriteLock
from thinkjepa.pipeline.picture.overlay import CAPTION_PX, PANEL_SHORT_SIDE_PX, PREDICTED_RGB, TRUE_RGB
from thinkjepa.pipeline.picture.playback import held_frames
from thinkjepa.stages.data.trajectories import project, to_camera
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.predict.frames import SplitChoice
from thinkjepa.stages.predict.models import found_model
from thinkjepa.stages.predict.prediction import predict as predict_in_process
from thinkjepa.stages.progress import NoProgress

RunCommand = Callable[..., Any]
MakeVideo = Callable[..., Path]

JOINTS = ("rightIndexFingerKnuckle", "rightIndexFingerTip", "rightThumbTip", "rightHand")
PAUSE, HOLD = held_frames(Fraction(5))
"""Sixteen frames at 10 a second are played at 5."""
INTRINSICS = np.array([[160.0, 0, 80], [0, 160, 64], [0, 0, 1]])


def labels_of(path: Path, number: int) -> VideoLabels:
    """A hand half a metre before a camera that drifts to the right, a centimetre a frame."""
    rng = np.random.default_rng(number)
    start_m = np.array([0, 0, 0.5]) + rng.normal(scale=0.05, size=(len(JOINTS), 3))
    moved_m = np.arange(NUM_FRAMES)[:, None, None] * np.array([0.004, 0.002, 0])
    camera_poses = np.repeat(np.eye(4)[None], NUM_FRAMES, axis=0)
    camera_poses[:, 0, 3] = 0.01 * np.arange(NUM_FRAMES)
    return VideoLabels(
        video_digest=file_digest(path),
        video=path.name,
        source="test",
        label_digest=f"labels {number}",
        reference_frame="world",
        joint_names=JOINTS,
        positions_m=(start_m + moved_m).astype(np.float32),
        confidences=np.ones((NUM_FRAMES, len(JOINTS)), dtype=np.float32),
        camera_poses=camera_poses,
        intrinsics=INTRINSICS,
    )


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [
        make_video(folder / f"{number}.mp4", num_frames=NUM_FRAMES + number, fps=FPS, size=SIZE)
        for number in range(4)
    ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, videos: list[Path], run_extract: RunCommand) -> Path:
    cache_dir = tmp_path_factory.mktemp("predict") / "cache"
    outcome = run_extract(videos[0].parent, cache_dir, "--batch-size", 1)
    assert outcome.status == 0, outcome.stderr
    with WriteSession(cache_dir) as session:
        session.add_labels(labels_of(path, number) for number, path in enumerate(videos))
    return cache_dir


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head that reads latents alone, so that only pixels move it, and moves it where they are seen."""
    out = tmp_path_factory.mktemp("run") / "run"
    return train_run(cache, out, head_inputs="latents", head_learning_rate=0.03)


@pytest.fixture(scope="module")
def predict(run_command: RunCommand) -> RunCommand:
    def run_it(run: Path, video: Path, out: Path, *flags: object) -> Any:
        return run_command("thinkjepa-predict", "--run", run, "--video", video, "-o", out, *flags, "--json")

    return run_it


def test_a_cached_clip_is_predicted_as_from_the_cache(
    run: Path, cache: Path, videos: list[Path], predict: RunCommand, tmp_path: Path
) -> None:
    trained = TrainedRun.open(run)
    features = trained.features(None)
    clip = next(clip for clip in features.clips if clip.video_digest == file_digest(videos[2]))
    batch = features.batch([clip.clip_id], torch.device("cpu"))
    with torch.no_grad():
        joints_m = trained.model()(batch.observed, batch.pooled, batch.poses).joints_m
    assert joints_m is not None
    outcome = predict(run, videos[2], tmp_path / "out.mp4", "--split-frame", clip.split_frame)
    assert outcome.status == 0, outcome.stderr
    found = np.array(outcome.json["positions_m"])
    expected = joints_m[0].flatten(0, 1).numpy()
    assert np.abs(found - expected).max() <= 0.5e-5 + 1e-9  # written to a hundredth of a millimetre
    assert outcome.json["future_frames"] == list(clip.future_frames[0])
    true_m = np.array(outcome.json["true_positions_m"])
    labels = labels_of(videos[2], 2)
    assert labels.camera_poses is not None
    camera = labels.camera_poses[clip.observed_frames[-1]]
    np.testing.assert_allclose(
        true_m, to_camera(labels.positions_m[list(clip.future_frames[0])], camera), atol=1e-5
    )
    distance = np.linalg.norm(found - true_m, axis=-1).mean()
    assert outcome.json["mean_distance_m"] == pytest.approx(distance, abs=2e-5)
    last_m = to_camera(labels.positions_m[clip.observed_frames[-1]], camera)
    stays = np.linalg.norm(last_m - true_m, axis=-1).mean()
    assert outcome.json["still_distance_m"] == pytest.approx(stays, abs=2e-5)
    assert json.loads((tmp_path / "out.json").read_text())["positions_m"] == outcome.json["positions_m"]


def test_what_is_predicted_depends_on_the_past_and_not_on_the_future(
    run: Path, predict: RunCommand, tmp_path: Path
) -> None:
    """Every pixel from the split on is changed: the difference is exactly 0. The controls move it."""
    changes = {"plain": None, "future": slice(24, None), "last": slice(23, 24), "first": slice(0, 1)}
    found = {}
    for name, change in changes.items():
        video = lossless_video(tmp_path / f"{name}.mkv", change=change)
        outcome = predict(run, video, tmp_path / f"{name}.mp4", "--split-frame", 24)
        assert outcome.status == 0, outcome.stderr
        found[name] = outcome.json["positions_m"]
    assert found["future"] == found["plain"]
    assert found["last"] != found["plain"] != found["first"]


def test_the_overlay_draws_the_hand_over_the_future(
    run: Path, videos: list[Path], predict: RunCommand, tmp_path: Path
) -> None:
    outcome = predict(run, videos[0], tmp_path / "out.mp4")
    assert outcome.status == 0, outcome.stderr
    pictures = frames_of(tmp_path / "out.mp4")
    record = outcome.json
    assert record["split_frame"] + 8 == NUM_FRAMES  # as late as the whole future is still shown
    assert len(record["observed_frames"]) + len(record["future_frames"]) == 16
    assert len(pictures) == 16 + PAUSE + HOLD
    assert pictures[0].shape[1] == 2 * PANEL_SHORT_SIDE_PX * SIZE[0] // SIZE[1]
    captions = pictures[0][PANEL_SHORT_SIDE_PX : PANEL_SHORT_SIDE_PX + CAPTION_PX].astype(int)
    for place, color in enumerate((PREDICTED_RGB, TRUE_RGB)):
        panel = np.split(captions, 2, axis=1)[place]
        assert (np.abs(panel - color).max(axis=-1) < 40).sum() > 100, "named before the split, too"
    labels = labels_of(videos[0], 0)
    assert labels.camera_poses is not None
    frame = record["future_frames"][3]
    in_camera = to_camera(labels.positions_m[frame], labels.camera_poses[frame])
    tip = project(in_camera, INTRINSICS)[JOINTS.index("rightIndexFingerTip")] * PANEL_SHORT_SIDE_PX / SIZE[1]
    x, y = round(tip[0]) + pictures[0].shape[1] // 2, round(tip[1])
    shown = pictures[8 + PAUSE + 3]
    colour = shown[y - 1 : y + 2, x - 1 : x + 2].mean(axis=(0, 1))
    assert np.abs(colour - [0, 114, 178]).max() < 40  # the true hand's blue, where the tip is
    x -= shown.shape[1] // 2
    ghost = shown[y - 1 : y + 2, x - 1 : x + 2].mean(axis=(0, 1))
    assert np.abs(ghost - colour).max() > 10, "fainter in the panel of the prediction"
    assert ghost[2] > ghost[0] + 30


def test_past_the_end_of_a_video_the_last_frame_stays(
    run: Path, videos: list[Path], predict: RunCommand, tmp_path: Path
) -> None:
    outcome = predict(run, videos[1], tmp_path / "out.mp4", "--split-time", 4.1)
    assert outcome.status == 0, outcome.stderr
    assert outcome.json["future_frames"] == []
    assert outcome.json["true_positions_m"] is None
    assert outcome.json["future_times_s"] == pytest.approx([4.1 + step / FPS for step in range(8)])
    assert len(frames_of(tmp_path / "out.mp4")) == 16 + PAUSE + HOLD


def test_a_video_without_labels_is_drawn_without_hands(
    run: Path, predict: RunCommand, make_video: MakeVideo, tmp_path: Path
) -> None:
    video = make_video(tmp_path / "new.mp4", num_frames=60, fps=FPS, size=SIZE)
    outcome = predict(run, video, tmp_path / "out.mp4")
    assert outcome.status == 0, outcome.stderr
    assert outcome.json["mean_distance_m"] is None
    pictures = frames_of(tmp_path / "out.mp4")
    assert pictures[0].shape[1] == PANEL_SHORT_SIDE_PX * SIZE[0] // SIZE[1]
    future = pictures[8 + PAUSE + 3][8 : PANEL_SHORT_SIDE_PX - 8, 8:-8].astype(int)
    drawn = np.abs(future - PREDICTED_RGB).max(axis=-1) < 25
    assert drawn.sum() == 0, "a hand that cannot be placed is not drawn"


@pytest.mark.parametrize(
    ("fps", "split_frame", "warning"),
    [
        (5, 30, "the run reads 10 frames a second, the video has 5;"),
        (10, 3, "the observed window begins before the video does; give a later --split-time"),
        (
            200,
            40,
            "the observed window begins before the video does; it takes 0.70 s, the video lasts 0.49 s",
        ),
        (30, 60, ""),
    ],
)
def test_frames_that_the_run_sees_twice_are_told(
    run: Path,
    predict: RunCommand,
    make_video: MakeVideo,
    tmp_path: Path,
    fps: int,
    split_frame: int,
    warning: str,
) -> None:
    video = make_video(tmp_path / "other.mp4", num_frames=100, fps=fps, size=SIZE)
    outcome = predict(run, video, tmp_path / "out.mp4", "--split-frame", split_frame)
    assert outcome.status == 0, outcome.stderr
    assert len(outcome.json["warnings"]) == bool(warning)
    assert warning in "".join(outcome.json["warnings"])
    assert warning in outcome.stderr


def test_labels_beside_a_new_video_give_the_true_hand(run: Path, predict: RunCommand, tmp_path: Path) -> None:
    video = lossless_video(tmp_path / "new.mkv", change=None)
    rows = ["frame,joint,x,y,z,fx,fy,cx,cy"]
    rows += [f"{frame},rightHand,0,0,0.5,160,160,80,64" for frame in range(NUM_FRAMES)]
    video.with_suffix(".csv").write_text("\n".join(rows) + "\n")
    outcome = predict(run, video, tmp_path / "out.mp4")
    assert outcome.status == 0, outcome.stderr
    true_m = np.array(outcome.json["true_positions_m"])[:, JOINTS.index("rightHand")]
    assert (true_m == [0, 0, 0.5]).all()
    assert outcome.json["mean_distance_m"] > 0


def test_a_run_knows_no_joint_below_its_least_confidence(
    run: Path, predict: RunCommand, tmp_path: Path
) -> None:
    """Neither as an observed pose nor as the truth."""
    strict = shutil.copytree(run, tmp_path / "strict")
    record = json.loads((run / "run.json").read_text())
    record["settings"]["min_confidence"] = 0.6
    (strict / "run.json").write_text(json.dumps(record))
    video = lossless_video(tmp_path / "new.mkv", change=None)
    rows = ["frame,joint,x,y,z,confidence,fx,fy,cx,cy"]
    rows += [
        f"{frame},{joint},0,0,0.5,{confidence},160,160,80,64"
        for frame in range(NUM_FRAMES)
        for joint, confidence in (("rightHand", 0.5), ("rightThumbTip", 0.7))
    ]
    video.with_suffix(".csv").write_text("\n".join(rows) + "\n")
    outcome = predict(strict, video, tmp_path / "out.mp4")
    assert outcome.status == 0, outcome.stderr
    known = np.array(outcome.json["true_confidence"]).any(axis=0)
    assert [name for name, is_known in zip(JOINTS, known, strict=True) if is_known] == ["rightThumbTip"]


def test_wrong_use_is_refused_in_one_clear_line(
    run: Path, cache: Path, videos: list[Path], tiny_models: Path, tmp_path: Path
) -> None:
    anchored = train_run(cache, tmp_path / "anchored", anchor="last_pose")
    unlabelled = lossless_video(tmp_path / "new.mkv", change=None)
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in (tiny_models / "encoder").iterdir():
        content = file.read_bytes()
        changed.joinpath(file.name).write_bytes(content.replace(b'"crop_size": 64', b'"crop_size":  64'))
    cases: list[tuple[Path, Path, SplitChoice, dict[str, str], str]] = [
        (anchored, unlabelled, SplitChoice(), {}, "no labels of this video.*beside it: put labels beside"),
        (run, videos[0], SplitChoice(frame=1), {}, "give one from 2 to 40"),
        (run, tmp_path / "none.mp4", SplitChoice(), {}, "cannot be read"),
        (run, videos[0], SplitChoice(), {"encoder": str(changed)}, "differs from the one that made"),
        (run, Path(__file__), SplitChoice(), {}, "cannot be decoded"),
    ]
    long = lossless_video(tmp_path / "long.mkv", change=None)
    rows = [f"{frame},rightHand,0,0,0.5" for frame in range(2 * NUM_FRAMES)]
    long.with_suffix(".csv").write_text("\n".join(["frame,joint,x,y,z", *rows]))
    cases += [
        (run, long, SplitChoice(), {}, r"'long.csv': has labels for 80 frames, the video has 40"),
        (run, videos[0], SplitChoice(time_s=100.0), {}, "from 0.00 s to 3.90 s: give one between them"),
        (run, videos[0], SplitChoice(time_s=float("nan")), {}, "split time nan s"),
    ]
    for where, video, split, places, message in cases:
        with pytest.raises(StageError, match=message):
            predict_in_process(
                where,
                video,
                split=split,
                places=places,
                cache_dir=None,
                device="cpu",
                decode_timeout_s=60,
                progress=NoProgress(),
            )
    with pytest.raises(StageError, match="not both"):
        SplitChoice(frame=9, time_s=1.0)


def test_a_refused_video_leaves_no_files(run: Path, predict: RunCommand, tmp_path: Path) -> None:
    outcome = predict(run, tmp_path / "none.mp4", tmp_path / "out.mp4")
    assert outcome.status == 2
    assert outcome.stderr.startswith("error: --video")
    assert len(outcome.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_displacements_start_from_the_last_observed_pose(
    cache: Path, videos: list[Path], predict: RunCommand, tmp_path: Path
) -> None:
    run = train_run(cache, tmp_path / "anchored", anchor="last_pose", variant="jepa")
    outcome = predict(run, videos[0], tmp_path / "out.mp4", "--split-frame", 20)
    assert outcome.status == 0, outcome.stderr
    labels = labels_of(videos[0], 0)
    assert labels.camera_poses is not None
    last_m = to_camera(labels.positions_m[19], labels.camera_poses[19])
    first_m = np.array(outcome.json["positions_m"])[0]
    assert np.linalg.norm(first_m - last_m, axis=-1).max() < 0.1
    assert FeatureCache.open(cache).labels.find(file_digest(videos[0])) is not None


def test_latents_of_an_unlabelled_video_need_no_last_pose(
    cache: Path, predict: RunCommand, run_command: RunCommand, tmp_path: Path
) -> None:
    """Its latents are those of the same run without a head's question."""
    run = train_run(cache, tmp_path / "anchored", anchor="last_pose", variant="jepa")
    video = lossless_video(tmp_path / "new.mkv", change=None)
    outcome = predict(run, video, tmp_path / "out.png")
    assert outcome.status == 0, outcome.stderr
    assert "positions_m" not in outcome.json
    assert "anchor last_pose" in outcome.json["no_hands"]
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    shown = run_command("thinkjepa-predict", "--run", run, "--video", video, "-o", tmp_path / "out.png")
    assert shown.stdout.splitlines()[-1] == f"no hands: {outcome.json['no_hands']}"
    refused = predict(run, video, tmp_path / "out.mp4")
    assert refused.status == 2
    assert "--anchor none; the latents alone (-o FILE.png) need none" in refused.stderr
    video.with_suffix(".csv").write_text("frame,joint,x,y,z\n39,rightHand,0,0,0.5\n")
    labelled = predict(run, video, tmp_path / "labelled.png", "--split-frame", 20)
    assert labelled.status == 0, labelled.stderr
    assert "none of the run's joints was seen" in labelled.json["no_hands"]


def test_a_run_finds_its_cache_and_its_models_from_any_folder(
    cache: Path, videos: list[Path], tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both were named relative to the project's folder, from which nothing runs any more."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(cache, project / "features")
    shutil.copytree(tiny_models / "encoder", project / "models" / "encoder")
    catalog = project / "features" / "cache.json"
    named = json.loads(catalog.read_text())
    for item in named["feature_sets"]:
        item["source"]["model"] = "models/encoder" if item["kind"] == "encoder" else item["source"]["model"]
    replace_listed(catalog, json.dumps(named).encode())
    (project / "features" / "extraction.json").unlink()
    monkeypatch.chdir(project)
    train_run(Path("features"), Path("results/runs/a"), variant="jepa")
    for folder, run in (
        (elsewhere, project / "results" / "runs" / "a"),
        (project / "results", Path("runs/a")),
    ):
        monkeypatch.chdir(folder)
        found = predict_in_process(
            run,
            videos[0],
            split=SplitChoice(),
            places={},
            cache_dir=None,
            device="cpu",
            decode_timeout_s=60,
            progress=NoProgress(),
        )
        assert found.hands is not None
    shutil.rmtree(project / "models")
    made = TrainedRun.open(Path("runs/a")).features(None).encoder
    with pytest.raises(StageError, match=r"'models/encoder', seen from .* name its folder with --encoder"):
        found_model(made, project / "features")
    (project / "features").rename(tmp_path / "moved")
    with WriteSession(tmp_path / "features"):
        pass  # another cache of that name, above the run
    with pytest.raises(StageError, match=r"run 'runs/a' was trained from 'features'.*--cache-dir"):
        TrainedRun.open(Path("runs/a")).features(None)


def test_a_file_that_another_process_writes_is_refused_and_its_neighbor_is_not(
    run: Path, videos: list[Path], predict: RunCommand, tmp_path: Path
) -> None:
    with WriteLock(tmp_path, file="a.mp4", remedy=""):
        refused = predict(run, videos[2], tmp_path / "a.mp4")
        assert refused.status == 2
        assert f"'{tmp_path / 'a.mp4'}' is being written by process {os.getpid()} of " in refused.stderr
        assert predict(run, videos[2], tmp_path / "b.mp4").status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"b.mp4", "b.json"}
