"""Variants that read joints off poses and the thinker's states: what they learn of planted motions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run_command

from thinkjepa.cache import FeatureCache, VideoLabels, WriteSession
from thinkjepa.pipeline.report.markdown import comparison_markdown
from thinkjepa.pipeline.report.plots import difference_picture, distance_picture, horizon_picture
from thinkjepa.pipeline.report.training import describe_metrics
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.compared.comparison import compare
from thinkjepa.stages.evaluate.compared.rollouts import compare_rollouts
from thinkjepa.stages.evaluate.evaluation import evaluate
from thinkjepa.stages.evaluate.rollout import roll_out
from thinkjepa.stages.evaluate.runs import read_evaluations
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Future = Callable[[int, int, Floats, float], Floats]
"""Displacements `(frame, 3)` of the hand from its last pose, by clip, frames, velocity and turn."""

SPLITS, WINDOW = (8, 20), 4
SMALL = TrainSettings(
    epochs=1, batch_size=16, depth=1, width=24, heads=2, fusion_width=16, head_width=32, device="cpu"
)
LEARNING = replace(
    SMALL, epochs=50, learning_rate=3e-3, head_learning_rate=3e-3, drop_poses=0.0, schedule="cosine"
)
BY_VIDEO = SplitRule(group_by="video", validation_fraction=0.3, test_fraction=0.2)


def plant(cache: Path, future: Future) -> None:
    """Labels for every video: a hand of even velocity before each split, and a still thumb on either side.

    Behind the split the hand moves as `future` says. The clip's number is even at the first split.
    """
    clips = FeatureCache.open(cache).select()
    videos = sorted({(clip.video, clip.video_digest) for clip in clips}, key=lambda item: number_of(item[0]))
    with WriteSession(cache) as session:
        session.add_labels(planted(video, digest, future) for video, digest in videos)


def number_of(video: str) -> int:
    return int(Path(video).stem)


def planted(video: str, digest: str, future: Future) -> VideoLabels:
    rng = np.random.default_rng(number_of(video))
    positions_m = np.zeros((SPLITS[-1] + WINDOW, 2, 3))
    for index, split in enumerate(SPLITS):
        start_m, velocity_m = rng.normal(0, 0.2, 3), rng.normal(0, 0.02, 3)
        turn = rng.choice((-1.0, 1.0))
        before = np.arange(split - 8, split)
        positions_m[before, 0] = start_m + velocity_m * (before - split + 1)[:, None]
        moved_m = future(2 * number_of(video) + index, WINDOW, velocity_m, turn)
        positions_m[split : split + WINDOW, 0] = start_m + moved_m
        positions_m[split - 8 : split + WINDOW, 1] = (0.1 * turn, 0.0, 0.0)
    return VideoLabels(
        video_digest=digest,
        video=video,
        source="test",
        label_digest="planted",
        reference_frame="world",
        joint_names=("rightHand", "rightThumbTip"),
        positions_m=positions_m.astype(np.float32),
        confidences=np.ones(positions_m.shape[:2], dtype=np.float32),
        camera_poses=np.repeat(np.eye(4)[None], len(positions_m), axis=0),
        intrinsics=np.diag([100.0, 100.0, 1.0]),
    )


def turning(clip: int, num_frames: int, velocity_m: Floats, turn: float) -> Floats:
    """The hand goes on along its velocity where the thumb is to the right, and back where it is left."""
    return turn * velocity_m * np.arange(1, num_frames + 1)[:, None]


def cued(clip: int, num_frames: int, velocity_m: Floats, turn: float) -> Floats:
    """A motion that only the thinker's states tell."""
    return (1.0 if clip % 2 else -1.0) * np.tile((0.06, 0.03, 0.0), (num_frames, 1))


def ade_m(cache: Path, out: Path, settings: TrainSettings = LEARNING, **changes: Any) -> tuple[float, float]:
    """Mean distance on the test clips of a run, and of its ridge."""
    train(cache, out, replace(settings, **changes), split=BY_VIDEO)
    found = evaluate(out)["trajectory"]
    return found["model"]["ade_m"], found["ridge"]["ade_m"]


def test_poses_learns_a_motion_that_is_no_linear_map_of_poses(
    latent_cache: BuildCache, tmp_path: Path
) -> None:
    """The displacement is a product, of which no ridge knows anything but its mean."""
    cache = latent_cache(num_videos=60)
    plant(cache, turning)
    own_m, ridge_m = ade_m(cache, tmp_path / "poses", variant="poses")
    assert own_m < 0.5 * ridge_m


def test_vlm_learns_joints_that_the_thinkers_states_alone_tell(
    latent_cache: BuildCache, tmp_path: Path
) -> None:
    """Without the states the same reader learns nothing, nor with a control in their place."""
    cache = latent_cache(num_videos=60)
    plant(cache, cued)
    own_m, ridge_m = ade_m(cache, tmp_path / "vlm", variant="vlm", epochs=20)
    assert own_m < 0.3 * ridge_m
    for name, changes in {"poses": {"variant": "poses"}, "none": {"guidance_source": "none"}}.items():
        without_m, _ = ade_m(cache, tmp_path / name, **{"variant": "vlm", "epochs": 8, **changes})
        assert without_m > 0.8 * ridge_m, name


@pytest.fixture
def runs(latent_cache: BuildCache, tmp_path: Path) -> dict[str, Path]:
    """A run of joints alone, and one with latents, on one cache."""
    cache = latent_cache(num_videos=20)
    plant(cache, turning)
    for variant in ("jepa", "poses"):
        train(cache, tmp_path / variant, replace(SMALL, variant=variant), split=BY_VIDEO)
        evaluate(tmp_path / variant)
    return {variant: tmp_path / variant for variant in ("jepa", "poses")}


def test_figures_of_latents_are_absent_where_none_are_forecast(runs: dict[str, Path]) -> None:
    found = json.loads((runs["poses"] / "eval-test.json").read_text())
    headline = json.loads((runs["poses"] / "test.json").read_text())
    metrics = json.loads((runs["poses"] / "metrics.json").read_text())
    assert found["latent"] == {}
    assert not any(name.startswith("latent") for name in found["trajectory"])
    assert "readout_ceiling" not in found["trajectory"]
    assert set(headline) == {"ade_m", "fde_m", "acc_5cm", "baseline_m"}
    assert [name for name in metrics if "latent" in name or "persistence" in name] == []
    assert metrics["select_by"] == "joints"
    assert "latent" not in describe_metrics(Path("run"), metrics)
    header, first, *_ = (runs["poses"] / "curve.csv").read_text().splitlines()
    assert dict(zip(header.split(","), first.split(","), strict=True))["validation_latent_error"] == ""
    assert (runs["poses"] / "curve.png").stat().st_size > 0


def test_it_is_compared_with_runs_that_forecast_latents(runs: dict[str, Path]) -> None:
    comparison = compare(read_evaluations(list(runs.values()), "test"))
    entries = {entry["name"]: entry["metrics"] for entry in comparison["entries"]}
    assert {"ade_m", "l2"} <= entries["jepa"].keys()
    assert "l2" not in entries["poses"]
    pair = next(item for item in comparison["differences"] if (item["a"], item["b"]) == ("jepa", "poses"))
    assert "ade_m" in pair["metrics"]
    assert "l2" not in pair["metrics"]
    assert comparison["ranking"]["sorted_by"] == "validation_distance_m"
    assert comparison["latents_compared"]
    assert "nan" not in comparison_markdown(comparison)
    for picture in (horizon_picture, distance_picture, difference_picture):
        assert picture(comparison)
    rolled = compare_rollouts({name: roll_out(run, horizons=[1, 2]) for name, run in runs.items()})
    for entry in rolled["entries"]:
        assert entry["name"] != "poses" or not any("l2" in figures for figures in entry["horizons"])


def test_neither_latents_nor_the_thinker_is_read(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(self: FeatureCache, name: str, array: str, *_: Any, **__: Any) -> None:
        raise AssertionError(f"{array} of {name} was read")

    monkeypatch.setattr(FeatureCache, "read", refuse)
    again = train(tmp_path / "cache", tmp_path / "again", replace(SMALL, variant="poses"), split=BY_VIDEO)
    assert again == json.loads((runs["poses"] / "metrics.json").read_text())
    evaluate(tmp_path / "again")
    assert (tmp_path / "again" / "eval-test.json").read_bytes() == (
        runs["poses"] / "eval-test.json"
    ).read_bytes()


def test_another_thinker_or_other_latents_are_the_same_run(latent_cache: BuildCache, tmp_path: Path) -> None:
    weights = []
    for name, altered in (("one", None), ("other", 3)):
        cache = latent_cache(name=name, num_videos=16, altered=altered, labelled=16)
        train(cache, tmp_path / f"{name}-run", replace(SMALL, variant="poses"), split=BY_VIDEO)
        weights += [path.name for path in (tmp_path / f"{name}-run" / "checkpoints").iterdir()]
    assert weights[0] == weights[1]


def test_without_hand_labels_it_is_refused_in_a_line(latent_cache: BuildCache, tmp_path: Path) -> None:
    line = ("--cache-dir", latent_cache(), "--out", tmp_path / "run", "--variant", "poses")
    done = run_command("thinkjepa-train", *line)
    assert done.returncode == 2
    assert "the cache has no hand labels: thinkjepa-data import stores them there" in " ".join(
        done.stderr.split()
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("task", "latent"), ("select_by", "latents"), ("trajectory_weight", 0.0)]
)
def test_settings_that_leave_it_nothing_to_train_are_refused(name: str, value: object) -> None:
    with pytest.raises(StageError, match=f"--{name.replace('_', '-')} .* forecasts hands and no latents"):
        TrainSettings(variant="poses", **{name: value})  # type: ignore[arg-type]
