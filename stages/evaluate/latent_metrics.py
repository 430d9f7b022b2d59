"""Distances between predicted and encoded latents, of each clip at each latent step of the horizon.

Shape letters: B batch, T latent steps, P patches, D latent dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LATENT_METRICS = ("l1", "l2", "smooth_l1", "cosine")


def latent_metrics(predicted: Tensor, future: Tensor) -> dict[str, Tensor]:
    """Metrics by name, each `(clip, step)` float64, from two `(batch, step, patch, dim)` tensors.

    l1: mean absolute error; l2: mean *squared* error; smooth_l1: Huber-like with beta 1 (quadratic below an
    error of 1); all three are means over patches and dims. cosine: similarity of each patch's latent, mean
    over patches, 1 at best.
    """
    predicted_BTPD, future_BTPD = predicted.double(), future.double()
    error = predicted_BTPD - future_BTPD
    smooth = F.smooth_l1_loss(predicted_BTPD, future_BTPD, reduction="none", beta=1.0)
    cosine = torch.cosine_similarity(predicted_BTPD, future_BTPD, dim=-1)
    return {
        "l1": error.abs().mean(dim=(2, 3)),
        "l2": error.square().mean(dim=(2, 3)),
        "smooth_l1": smooth.mean(dim=(2, 3)),
        "cosine": cosine.mean(dim=2),
    }
