"""Training runs on a real cache: learning, determinism, files, errors."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from thinkjepa.cache import CacheError, FeatureCache
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.data.features import choose_features
from thinkjepa.stages.train.fit.losses import persistence_loss
from thinkjepa.stages.train.plan import divide_clips
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]

TINY = TrainSettings(
    tracker="none",  # its files tell when they were written
    epochs=2,
    batch_size=4,
    depth=2,
    width=24,
    heads=2,
    fusion_width=16,
    learning_rate=3e-3,
    gate_learning_rate=3e-2,
    device="cpu",
)


class Recorder:
    """A progress callback that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int, float]] = []

    def __call__(self, *, epoch: int, step: int, total_steps: int, loss: float) -> None:
        self.calls.append((epoch, step, total_steps, loss))


def run(cache: Path, out: Path, settings: TrainSettings = TINY, **overrides: Any) -> dict[str, Any]:
    recorder, owned = overrides.pop("progress", Recorder()), overrides.pop("owns_out_dir", False)
    return train(cache, out, replace(settings, **overrides), progress=recorder, owns_out_dir=owned)


def test_guidance_learns_what_the_observed_latents_do_not_say(
    latent_cache: BuildCache, tmp_path: Path
) -> None:
    cache = latent_cache(num_videos=40)
    guided = run(cache, tmp_path / "guided", epochs=25)
    alone = run(cache, tmp_path / "alone", epochs=25, variant="jepa")
    assert guided["num_clips"] == alone["num_clips"]
    assert guided["persistence_validation_loss"] == pytest.approx(1.0, rel=1e-3)
    assert guided["validation_loss"] < 0.6 * alone["validation_loss"]


@pytest.mark.parametrize("variant", ["thinkjepa", "jepa", "vlm"])
def test_equal_runs_write_equal_files(latent_cache: BuildCache, tmp_path: Path, variant: str) -> None:
    cache = latent_cache()
    torch.manual_seed(1)
    first = run(cache, tmp_path / "a", variant=variant)
    torch.manual_seed(2)
    assert run(cache, tmp_path / "b", variant=variant) == first
    for file in ("run.json", "split.json", "metrics.json", "curve.csv", "curve.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_another_seed_trains_another_model(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache = latent_cache()
    first, second = (run(cache, tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert first["validation_loss"] != second["validation_loss"]
    assert first["persistence_validation_loss"] == second["persistence_validation_loss"]


def test_metrics_are_those_of_the_best_epoch(latent_cache: BuildCache, tmp_path: Path) -> None:
    metrics = run(latent_cache(), tmp_path / "run", epochs=4)
    rows = list(csv.DictReader((tmp_path / "run" / "curve.csv").read_text().splitlines()))
    losses = [float(row["validation_loss"]) for row in rows]
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert metrics["validation_loss"] == min(losses)
    assert metrics["best_epoch"] == losses.index(min(losses)) + 1
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics


def test_older_weights_survive_a_later_run_in_the_same_folder(
    latent_cache: BuildCache, tmp_path: Path
) -> None:
    cache = latent_cache()
    records = []
    for seed in (0, 1):
        run(cache, tmp_path / "run", seed=seed)
        records.append(json.loads((tmp_path / "run" / "run.json").read_text()))
        (tmp_path / "run" / "run.json").unlink()  # as DVC does before it runs a stage again
    files = [tmp_path / "run" / record["checkpoint"]["file"] for record in records]
    assert files[0] != files[1]
    assert all(load_file(file) for file in files)


def test_a_finished_run_is_neither_done_again_nor_overwritten(
    latent_cache: BuildCache, tmp_path: Path
) -> None:
    cache = latent_cache()
    first = run(cache, tmp_path / "run", seed=0)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert run(cache, tmp_path / "run", seed=0) == first
    with pytest.raises(StageError, match=r"finished run that differs in settings.seed \(0, now 1\): choose"):
        run(cache, tmp_path / "run", seed=1)
    assert {
        path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()
    } == files


def test_run_record_names_what_determined_it(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache = latent_cache()
    run(cache, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    sets = FeatureCache.open(cache).feature_sets
    assert record["cache"] == str(cache)
    assert sets[record["feature_sets"]["encoder"]["name"]].kind == "encoder"
    assert record["settings"]["epochs"] == 2
    assert record["model"]["grid"] == {
        "observed_steps": 3,
        "future_steps": 2,
        "height": 2,
        "width": 3,
        "dim": 8,
    }
    assert record["versions"]["torch"] in torch.__version__


def test_sides_share_no_group_and_the_split_is_stored_in_cache_and_run(
    latent_cache: BuildCache, tmp_path: Path
) -> None:
    cache = latent_cache()
    run(cache, tmp_path / "run")
    stored = json.loads(next((cache / "splits").glob("*.json")).read_text())
    copied = json.loads((tmp_path / "run" / "split.json").read_text())
    clips = copied.pop("clips")
    assert copied == stored
    assert stored["grouping"] == "folder"
    rows = {clip.clip_id: clip for clip in FeatureCache.open(cache).select()}
    assert sorted(clip_id for side in clips.values() for clip_id in side) == sorted(rows)
    for side, clip_ids in clips.items():
        assert {stored["groups"][rows[clip_id].video.split("/")[0]] for clip_id in clip_ids} == {side}


def test_training_never_reads_a_test_clip(
    latent_cache: BuildCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    original = FeatureCache.read

    def spy(self: FeatureCache, set_name: str, array: str, clip_ids: Any, **rest: Any) -> torch.Tensor:
        read.update(clip_ids)
        return original(self, set_name, array, clip_ids, **rest)

    monkeypatch.setattr(FeatureCache, "read", spy)
    run(latent_cache(), tmp_path / "run")
    clips = json.loads((tmp_path / "run" / "split.json").read_text())["clips"]
    assert read == {*clips["train"], *clips["validation"]}


def test_progress_counts_epochs_and_steps_from_one(latent_cache: BuildCache, tmp_path: Path) -> None:
    recorder = Recorder()
    metrics = run(latent_cache(), tmp_path / "run", progress=recorder)
    num_steps = -(-metrics["num_clips"]["train"] // TINY.batch_size)
    expected = [(epoch, step, num_steps) for epoch in (1, 2) for step in range(1, num_steps + 1)]
    assert [call[:3] for call in recorder.calls] == expected
    assert all(0 < call[3] < 100 for call in recorder.calls)


def test_the_first_of_several_windows_is_trained_on(latent_cache: BuildCache, tmp_path: Path) -> None:
    one = run(latent_cache(name="one"), tmp_path / "run of one")
    two = run(latent_cache(name="two", windows=2), tmp_path / "run of two")
    assert one == two


def test_a_loss_that_is_not_finite_stops_and_names_the_clips(
    latent_cache: BuildCache, tmp_path: Path
) -> None:
    cache = latent_cache()
    features = choose_features(FeatureCache.open(cache), TINY)
    train_ids = divide_clips(features, cache, SplitRule()).ids["train"]
    with pytest.raises(StageError, match=r"loss is (nan|inf) on clips") as caught:
        run(cache, tmp_path / "run", learning_rate=1e30, epochs=3)
    assert any(clip_id in str(caught.value) for clip_id in train_ids)
    assert not (tmp_path / "run" / "run.json").exists()


def test_persistence_repeats_the_last_observed_step(latent_cache: BuildCache) -> None:
    cache = FeatureCache.open(latent_cache())
    features = choose_features(cache, TrainSettings(variant="jepa"))
    ids = [clip.clip_id for clip in features.clips]
    observed = cache.read(features.encoder.name, "observed", ids).float()
    future = cache.read(features.encoder.name, "future", ids)[:, 0].float()
    expected = (observed[:, -1:] - future).square().mean()
    assert persistence_loss(features, ids, batch_size=5) == pytest.approx(float(expected), rel=1e-6)


def test_unknown_set_is_refused_with_the_choices(latent_cache: BuildCache, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="'nonsense' names no feature set"):
        train(latent_cache(), tmp_path / "run", TINY, encoder_set="nonsense", progress=Recorder())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("variant", "gpt"),
        ("epochs", 0),
        ("batch_size", -1),
        ("weight_decay", -1.0),
        ("heads", 5),
        ("device", "tpu"),
    ],
)
def test_impossible_settings_are_refused(field: str, value: object) -> None:
    with pytest.raises(StageError, match=str(value)):
        TrainSettings(**{field: value})  # type: ignore[arg-type]


class InterruptionError(Exception):
    """Stands for a killed process."""


@pytest.mark.parametrize("variant", ["thinkjepa", "vlm"])
def test_an_interrupted_run_continues_to_the_same_files(
    latent_cache: BuildCache, tmp_path: Path, variant: str
) -> None:
    cache = latent_cache()
    run(cache, tmp_path / "whole", epochs=4, variant=variant)

    def interrupt(*, epoch: int, step: int, total_steps: int, loss: float) -> None:
        if (epoch, step) == (3, 2):
            raise InterruptionError

    with pytest.raises(InterruptionError):
        run(cache, tmp_path / "cut", epochs=4, variant=variant, progress=interrupt)
    recorder = Recorder()
    run(cache, tmp_path / "cut", epochs=4, variant=variant, progress=recorder)
    assert {call[0] for call in recorder.calls} == {3, 4}
    names = {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.*")}
    assert names == {path.relative_to(tmp_path / "cut") for path in (tmp_path / "cut").rglob("*.*")}
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_other_settings_do_not_continue_an_interrupted_run(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache = latent_cache()

    def interrupt(*, epoch: int, step: int, total_steps: int, loss: float) -> None:
        if epoch == 2:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        run(cache, tmp_path / "run", progress=interrupt)
    anew = run(cache, tmp_path / "run", seed=5, owns_out_dir=True)
    assert anew == run(cache, tmp_path / "fresh", seed=5)


def test_clips_at_once_do_not_change_the_step(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache = latent_cache()
    all_at_once = run(cache, tmp_path / "4", clips_per_forward=4)
    one_by_one = run(cache, tmp_path / "1", clips_per_forward=1)
    assert all_at_once["validation_loss"] == pytest.approx(one_by_one["validation_loss"], rel=1e-4)
