"""Latent metrics and horizons against values worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from thinkjepa.cache import ClipRow, FeatureCache
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.metrics import horizon_summary, latent_metrics, step_horizons_s


@pytest.fixture
def clip(latent_cache) -> ClipRow:
    path: Path = latent_cache()
    return FeatureCache.open(path).select()[0]


def test_metrics_of_known_errors() -> None:
    future = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])
    predicted = torch.tensor([[[[1.0, 0.5]], [[2.0, 0.0]]]])
    metrics = latent_metrics(predicted, future)
    assert tuple(metrics) == ("l1", "l2", "smooth_l1", "cosine")
    assert metrics["l1"].tolist() == [[0.25, 2.0]]
    assert metrics["l2"].tolist() == [[0.125, 4.0]]
    assert metrics["smooth_l1"].tolist() == [[0.0625, 1.5]]
    assert metrics["cosine"].tolist() == [[pytest.approx(1 / 1.25**0.5), 0.0]]


def test_step_means_add_up_to_the_means_over_all_values() -> None:
    predicted, future = torch.randn(2, 3, 4, 5, 8, generator=torch.Generator().manual_seed(0)).double()
    metrics = latent_metrics(predicted, future)
    assert float(metrics["l1"].mean()) == pytest.approx(float(F.l1_loss(predicted, future)))
    assert float(metrics["l2"].mean()) == pytest.approx(float(F.mse_loss(predicted, future)))
    assert float(metrics["smooth_l1"].mean()) == pytest.approx(float(F.smooth_l1_loss(predicted, future)))


def test_perfect_forecast_scores_zero_and_one() -> None:
    future = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    means = {name: float(values.mean()) for name, values in latent_metrics(future, future).items()}
    assert means == {"l1": 0, "l2": 0, "smooth_l1": 0, "cosine": pytest.approx(1)}


def test_horizon_runs_from_the_last_observed_frame_to_the_middle_of_a_step(clip: ClipRow) -> None:
    assert step_horizons_s(clip, windows=1, tubelet=2) == pytest.approx([0.15, 0.35])


def test_horizon_uses_the_real_times_of_every_clip(clip: ClipRow) -> None:
    last = clip.observed_times_s[-1]
    slower = replace(clip, future_times_s=((last + 0.2, last + 0.6, last + 1.0, last + 1.0),))
    horizons_s = [step_horizons_s(item, windows=1, tubelet=2) for item in (clip, slower)]
    first, second = horizon_summary(np.array(horizons_s))
    assert first["step"] == 1
    assert first["seconds"] == pytest.approx((0.15 + 0.4) / 2)
    assert (second["seconds_min"], second["seconds_max"]) == pytest.approx((0.35, 1.0))


def test_frames_that_are_no_multiple_of_the_tubelet_are_refused(clip: ClipRow) -> None:
    with pytest.raises(StageError, match="no multiple of the encoder's tubelet 3"):
        step_horizons_s(clip, windows=1, tubelet=3)
