"""A trained run is measured on its own clips, beside latent persistence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from thinkjepa.cache import FeatureCache
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.baselines import Predicted
from thinkjepa.stages.evaluate.evaluation import evaluate, score_columns
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.train.data.features import Batch
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]


@pytest.fixture
def trained(latent_cache: BuildCache, tmp_path: Path) -> Path:
    settings = TrainSettings(
        epochs=3, batch_size=4, depth=2, width=24, heads=2, fusion_width=16, learning_rate=3e-3, device="cpu"
    )
    train(latent_cache(), tmp_path / "run", settings)
    return tmp_path / "run"


def test_validation_l2_is_the_loss_that_training_reported(trained: Path) -> None:
    """Weights, features, split and clips all came back as they were."""
    metrics = json.loads((trained / "metrics.json").read_text())
    result = evaluate(trained, split="validation")
    assert result["num_clips"] == metrics["num_clips"]["validation"]
    assert result["latent"]["model"]["l2"] == pytest.approx(metrics["validation_loss"], rel=1e-6)
    assert result["latent"]["latent_persistence"]["l2"] == pytest.approx(
        metrics["persistence_validation_loss"], rel=1e-6
    )


def test_result_is_on_the_test_clips_and_written_to_the_run(trained: Path) -> None:
    result = evaluate(trained)
    assert json.loads((trained / "eval-test.json").read_text()) == result
    clips = json.loads((trained / "split.json").read_text())["clips"]["test"]
    rows = pq.read_table(trained / "eval-test.parquet").to_pylist()
    assert [row["clip_id"] for row in rows] == clips
    mean = sum(row["model_cosine"] for row in rows) / len(rows)
    assert mean == pytest.approx(result["latent"]["model"]["cosine"])


def test_the_headline_has_the_latent_errors_of_the_evaluation(trained: Path) -> None:
    latent = evaluate(trained)["latent"]
    assert json.loads((trained / "test.json").read_text()) == {
        "latent": round(latent["model"]["l2"], 4),
        "persist": round(latent["latent_persistence"]["l2"], 4),
    }


def test_persistence_is_off_by_the_step_that_every_future_takes(trained: Path) -> None:
    scores = evaluate(trained)["latent"]["latent_persistence"]
    assert scores["l1"] == pytest.approx(1.0, abs=1e-3)
    assert scores["l2"] == pytest.approx(1.0, abs=2e-3)
    assert scores["smooth_l1"] == pytest.approx(0.5, abs=1e-3)


def test_curve_over_the_horizon_averages_to_the_whole(trained: Path) -> None:
    result = evaluate(trained)
    curve = result["horizon"]
    assert [record["step"] for record in curve] == [1, 2]
    assert [record["seconds"] for record in curve] == pytest.approx([0.15, 0.35])
    assert result["last_frame"]["seconds"] == pytest.approx(0.4), "a step is two frames of a tenth"
    for forecast in ("model", "latent_persistence"):
        mean = sum(record[forecast]["l2"] for record in curve) / len(curve)
        assert mean == pytest.approx(result["latent"][forecast]["l2"])


def test_evaluating_twice_writes_the_same_bytes(trained: Path) -> None:
    evaluate(trained)
    files = [trained / "eval-test.json", trained / "eval-test.parquet"]
    before = [path.read_bytes() for path in files]
    evaluate(trained)
    assert [path.read_bytes() for path in files] == before


def test_future_latents_do_not_reach_the_forecast(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the futures of all test clips changed, errors change and the forecasts do not."""
    forecasts: list[torch.Tensor] = []
    from thinkjepa.stages.evaluate import evaluation

    test_ids = set(TrainedRun.open(trained).clip_ids("test"))
    original_metrics, original_read = evaluation.latent_metrics, FeatureCache.read

    def keep(predicted: torch.Tensor, future: torch.Tensor) -> dict[str, torch.Tensor]:
        forecasts.append(predicted.clone())
        return original_metrics(predicted, future)

    def altered(self, set_name, array, clip_ids, **rest):
        values = original_read(self, set_name, array, clip_ids, **rest)
        if array == "future":
            values[torch.tensor([clip_id in test_ids for clip_id in clip_ids])] += 7
        return values

    monkeypatch.setattr(evaluation, "latent_metrics", keep)
    before = evaluate(trained)
    monkeypatch.setattr(FeatureCache, "read", altered)
    after = evaluate(trained)
    half = len(forecasts) // 2
    assert all(torch.equal(*pair) for pair in zip(forecasts[:half], forecasts[half:], strict=True))
    assert after["latent"]["model"]["l2"] > before["latent"]["model"]["l2"] + 1


def test_a_moved_cache_is_named_by_hand(trained: Path, tmp_path: Path) -> None:
    before = evaluate(trained)
    shutil.move(tmp_path / "cache", tmp_path / "elsewhere")
    assert evaluate(trained, cache_dir=tmp_path / "elsewhere") == before


def test_features_of_another_origin_are_refused(trained: Path) -> None:
    record = json.loads((trained / "run.json").read_text())
    record["feature_sets"]["encoder"]["fingerprint"] = "0" * 64
    (trained / "run.json").write_text(json.dumps(record))
    with pytest.raises(StageError, match="lacks feature set encoder-"):
        evaluate(trained)


def test_damaged_weights_are_refused(trained: Path) -> None:
    file = next((trained / "checkpoints").iterdir())
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(StageError, match="damaged or from another run"):
        evaluate(trained)


def test_clips_that_left_the_cache_are_refused(trained: Path) -> None:
    record = json.loads((trained / "split.json").read_text())
    record["clips"]["test"].append("feedfeedfeedfeed@8")
    (trained / "split.json").write_text(json.dumps(record))
    with pytest.raises(StageError, match="'feedfeedfeedfeed@8'"):
        evaluate(trained)


def test_unknown_split_and_folder_without_a_run_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="'tset' is not one of train, validation, test"):
        evaluate(trained, split="tset")
    with pytest.raises(StageError, match="no finished training run"):
        evaluate(tmp_path / "nothing")


def test_scores_of_shuffled_guidance_are_means_over_permutations() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other, future = (torch.randn(3, 2, 4, 5, generator=generator) for _ in range(3))
    batch = Batch(observed=future, future=future, pooled=None)
    both = {"shuffled_guidance": Predicted(one, None, (Predicted(other, None),))}
    found = score_columns(both, batch, joints=())
    alone = [
        score_columns({"shuffled_guidance": Predicted(latents, None)}, batch, joints=())
        for latents in (one, other)
    ]
    assert set(found) == set(alone[0])
    for name, values in found.items():
        torch.testing.assert_close(values, (alone[0][name] + alone[1][name]) / 2)
