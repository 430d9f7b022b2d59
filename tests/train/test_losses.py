"""Losses against torch's own, one value a clip."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from thinkjepa.stages.train.losses import LatentLoss, latent_loss


@pytest.mark.parametrize(
    ("kind", "reference"), [("mse", F.mse_loss), ("l1", F.l1_loss), ("smooth_l1", F.smooth_l1_loss)]
)
def test_latent_losses_are_torchs_per_clip(kind: LatentLoss, reference: object) -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, target = (2 * torch.randn(3, 2, 4, 5, generator=generator) for _ in range(2))
    expected = [float(reference(p, t)) for p, t in zip(predicted, target, strict=True)]  # type: ignore[operator]
    assert latent_loss(predicted, target, kind).tolist() == pytest.approx(expected, rel=1e-6)
