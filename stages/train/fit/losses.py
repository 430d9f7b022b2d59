"""The training losses, one value a clip; mean squared errors are the paper's.

Shape letters: B batch, T latent steps, K frames of a step, J joints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from thinkjepa.stages.train.settings import LatentLoss


def latent_error(predicted: Tensor, future: Tensor) -> Tensor:
    """Mean squared error of each clip, `(batch,)`, float32."""
    return latent_loss(predicted, future, "mse")


def latent_loss(predicted: Tensor, target: Tensor, kind: LatentLoss) -> Tensor:
    """Mean error of each clip's latents, `(batch,)`, float32; smooth L1 turns linear at a difference of 1.

    No gradient reaches the target, whatever it was made of.
    """
    predicted, target = predicted.float(), target.detach()
    difference = predicted - target
    if kind == "mse":
        errors = difference.square()
    elif kind == "l1":
        errors = difference.abs()
    else:
        errors = F.smooth_l1_loss(predicted, target, reduction="none")
    return errors.flatten(1).mean(dim=1)


def trajectory_error(
    predicted_m: Tensor, future_m: Tensor, confidence: Tensor, *, unit_m: Tensor | None = None
) -> Tensor:
    """Mean squared error of each clip's coordinates, `(batch,)`, float32, in m^2 or in `unit_m` `(joint, 1)`.

    Positions are `(batch, step, frame, joint, 3)`, `confidence` `(batch, step, frame, joint)` weighs them: at
    0 a joint has no part in the error or its gradient. A clip of no confidence at all has error 0.
    """
    difference = predicted_m - future_m.detach()
    if unit_m is not None:
        difference = difference / unit_m
    return _weighted(difference.square().mean(dim=-1), confidence)


def joint_distance(predicted_m: Tensor, future_m: Tensor, confidence: Tensor) -> Tensor:
    """Mean distance of each clip's joints, metres, `(batch,)`, weighed as in `trajectory_error`."""
    return _weighted(torch.linalg.vector_norm(predicted_m - future_m, dim=-1), confidence)


def _weighted(errors_BTKJ: Tensor, confidence_BTKJ: Tensor) -> Tensor:
    total = (errors_BTKJ * confidence_BTKJ).flatten(1).sum(dim=1)
    weight = confidence_BTKJ.flatten(1).sum(dim=1)
    return total / torch.where(weight > 0, weight, 1.0)


def persistence(observed: Tensor, *, future_steps: int) -> Tensor:
    """The last observed latent step, repeated over the future: what a forecast has to beat."""
    return observed[:, -1:].expand(-1, future_steps, -1, -1)
