"""Warm starts from a V-JEPA 2 checkpoint in transformers' own files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import VJEPA2Config, VJEPA2Model

from thinkjepa.pipeline.project.run_store import find_warm_start
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.init_from import WarmStart, start_from
from thinkjepa.stages.train.model.config import ModelShape
from thinkjepa.stages.train.model.forecast import build_model
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]
BuildShape = Callable[..., ModelShape]

TINY = TrainSettings(
    epochs=1,
    batch_size=4,
    depth=2,
    width=24,
    heads=2,
    fusion_width=16,
    device="cpu",
    latent_target="latents",  # what the checkpoint's output layer predicts
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained V-JEPA 2 of the test cache's latent width, saved by transformers."""
    config = VJEPA2Config(
        patch_size=8,
        crop_size=16,
        frames_per_clip=4,
        hidden_size=8,
        num_attention_heads=2,
        num_hidden_layers=1,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=2,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vjepa2")
    VJEPA2Model(config).save_pretrained(folder)
    return folder


def run(cache: Path, out: Path, settings: TrainSettings) -> dict[str, Any]:
    return train(cache, out, settings, warm_start=find_warm_start(settings))


@pytest.mark.parametrize("variant", ["thinkjepa", "jepa"])
def test_training_starts_from_the_checkpoint_and_reports_both_losses(
    latent_cache: BuildCache, tmp_path: Path, checkpoint: Path, variant: str
) -> None:
    cache, settings = latent_cache(), replace(TINY, variant=variant)  # type: ignore[arg-type]
    cold = run(cache, tmp_path / "cold", settings)
    warm = run(cache, tmp_path / "warm", replace(settings, init_from=str(checkpoint)))
    assert "initial_validation_loss" not in cold
    assert warm["initial_validation_loss"] != warm["random_start_validation_loss"]
    assert warm["last_train_loss"] != cold["last_train_loss"]
    frozen = replace(settings, init_from=str(checkpoint), learning_rate=1e-30, gate_learning_rate=1e-30)
    still = run(cache, tmp_path / "still", frozen)
    assert still["validation_loss"] == pytest.approx(still["initial_validation_loss"], rel=1e-6)
    random = run(cache, tmp_path / "random", replace(frozen, init_from=""))
    assert random["validation_loss"] == pytest.approx(still["random_start_validation_loss"], rel=1e-6)
    record = json.loads((tmp_path / "warm" / "run.json").read_text())
    assert len(record["init_from_digest"]) == 64


def test_a_name_of_the_hub_is_found_among_what_was_downloaded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laid out as huggingface_hub keeps its downloads; the tests have no network."""
    kept, commit = tmp_path / "models--someone--vjepa2", "0123456789" * 4
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(commit)
    shutil.copytree(checkpoint, kept / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    by_name = find_warm_start(replace(TINY, init_from="someone/vjepa2"))
    by_path = find_warm_start(replace(TINY, init_from=str(checkpoint)))
    assert by_name is not None
    assert by_path is not None
    assert by_name.path == kept / "snapshots" / commit
    assert by_name.digest == by_path.digest
    with pytest.raises(StageError, match="HF_HUB_OFFLINE forbids"):
        find_warm_start(replace(TINY, init_from="someone/else"))


def test_only_the_predictor_is_overwritten(model_shape: BuildShape, checkpoint: Path) -> None:
    fresh, warm = (build_model(model_shape("thinkjepa"), seed=0) for _ in range(2))
    start_from(warm, WarmStart(checkpoint, digest=""))
    before, after = fresh.state_dict(), warm.state_dict()
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if "pyramid" in name} <= kept
    moved = {
        name for name in before if name.endswith("weight") and ".predictor." in name and "norm" not in name
    }
    assert not moved & kept


def test_the_vlm_of_a_matrix_takes_no_part(
    latent_cache: BuildCache, tmp_path: Path, checkpoint: Path
) -> None:
    settings = replace(TINY, variant="vlm", init_from=str(checkpoint))
    assert "initial_validation_loss" not in run(latent_cache(), tmp_path / "run", settings)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"heads": 4}, "pred_num_attention_heads=2"),
        ({"width": 48}, "pred_hidden_size"),
        ({"depth": 3}, "layers"),
        ({"latent_pool": 1, "heads": 1}, "pred_num_attention_heads=2, the predictor 1"),
    ],
)
def test_another_shape_is_refused(
    latent_cache: BuildCache, tmp_path: Path, checkpoint: Path, changed: dict[str, int], message: str
) -> None:
    settings = replace(TINY, init_from=str(checkpoint), **changed)  # type: ignore[arg-type]
    with pytest.raises(StageError, match=message):
        run(latent_cache(), tmp_path / "run", settings)


def test_latents_of_another_width_are_refused(model_shape: BuildShape, checkpoint: Path) -> None:
    shape = model_shape("jepa")
    other = replace(shape, grid=replace(shape.grid, dim=16))
    with pytest.raises(StageError, match="hidden_size=8, the predictor 16"):
        start_from(build_model(other, seed=0), WarmStart(checkpoint, digest=""))


def test_a_folder_without_safetensors_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(StageError, match="safetensors"):
        find_warm_start(replace(TINY, init_from=str(tmp_path)))
