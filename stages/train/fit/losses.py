"""Per-sample losses: the loss that a training minimizes, and the errors that a run reports.

A new weighted term touches two files: its weight is a field of `LossSettings` in `train/settings.py`, its
error a function of this module that `per_sample_losses` adds. Only a term that reads something new of the
model touches a third, `model/forecast.py`. Mean squared errors are the paper's (arXiv 2603.22281).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from thinkjepa.stages.train.data.batches import batches_in_order
from thinkjepa.stages.train.data.features import Batch, Features
from thinkjepa.stages.train.model.forecast import Forecast
from thinkjepa.stages.train.settings import LatentLoss, TrainSettings

COLUMNS = range(6)
LOSS, LATENT_MSE, DISTANCE_M, WITH_DISTANCE, LATENT_PART, JOINT_PART = COLUMNS
"""Columns of per-sample losses. `WITH_DISTANCE` is 1 for a clip whose distance is known, else 0.

The weighted parts of latents and joints make up the loss.
"""


def per_sample_losses(
    forecast: Forecast,
    clips: Batch,
    settings: TrainSettings,
    *,
    unit_m: Tensor | None = None,
    latent_unit: Tensor | None = None,
) -> Tensor:
    """Each clip's loss, the errors that are reported, and the parts of the loss: `(clip, column)`.

    The joints' distance is the evaluation's ADE in metres: the mean over labelled joint-frames of joints that
    were seen in the observed window. Without one, or without a head, it is 0 and so is `WITH_DISTANCE`.
    Without latents, their columns are 0. `unit_m`, of a shape that extends to `(batch, step, frame, joint,
    1)`, and `latent_unit` `(dim,)` are the units of joints and latents in the loss.
    """
    loss, mse = _latent_errors(forecast, clips, settings, unit=latent_unit)
    if forecast.joints_m is None or clips.trajectory is None:
        none = torch.zeros_like(mse)
        return torch.stack((loss, mse, none, none, loss, none), dim=1)
    target = clips.trajectory
    confidence = target.future_confidence
    if settings.anchor == "last_pose":  # without a last pose, no displacement is known
        confidence = confidence * target.last_known[:, None, None]
    joints = trajectory_error(forecast.joints_m, target.future_m, confidence, unit_m=unit_m)
    joints = settings.trajectory_weight * joints
    counted = target.counted.float()
    distance_m = joint_distance(forecast.joints_m.detach(), target.future_m.detach(), counted)
    with_distance = counted.flatten(1).amax(dim=1)
    return torch.stack((loss + joints, mse, distance_m, with_distance, loss, joints), dim=1)


def _latent_errors(
    forecast: Forecast, clips: Batch, settings: TrainSettings, *, unit: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The latents' weighted part of each clip's loss, and their mean squared error, both `(batch,)`."""
    if forecast.latents is None:
        assert forecast.joints_m is not None, "a forecast has latents or joints"
        none = forecast.joints_m.new_zeros(len(forecast.joints_m), dtype=torch.float32)
        return none, none
    kind, (observed, future) = settings.latent_loss, clips.latents
    loss = latent_loss(forecast.latents, future, kind, unit=unit)
    if forecast.next_steps is not None:
        following = torch.cat((observed[:, 1:], future[:, :1]), dim=1)
        next_step = latent_loss(forecast.next_steps, following, kind, unit=unit)
        loss = loss + settings.next_step_weight * next_step
    return settings.latent_weight * loss, latent_mse(forecast.latents.detach(), future.detach())


def latent_mse(predicted: Tensor, future: Tensor) -> Tensor:
    """Mean squared error of each clip, `(batch,)`, float32."""
    return latent_loss(predicted, future, "mse")


def latent_loss(predicted: Tensor, target: Tensor, kind: LatentLoss, *, unit: Tensor | None = None) -> Tensor:
    """Mean error of each clip's latents, `(batch,)`, float32. Smooth L1 turns linear at a difference of 1.

    Differences are in the encoder's units, or in `unit` `(dim,)`. No gradient reaches the target.
    """
    predicted, target = predicted.float(), target.detach()
    if unit is not None:
        predicted, target = predicted / unit, target / unit
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

    Positions are `(batch, step, frame, joint, 3)`, weighted by `confidence` `(batch, step, frame, joint)`: at
    0 a joint has no part in the error or its gradient. A clip of no confidence at all has error 0.
    """
    difference = predicted_m - future_m.detach()
    if unit_m is not None:
        difference = difference / unit_m
    return _weighted(difference.square().mean(dim=-1), confidence)


def joint_distance(predicted_m: Tensor, future_m: Tensor, confidence: Tensor) -> Tensor:
    """Mean distance of each clip's joints, metres, `(batch,)`, weighted as in `trajectory_error`.

    It is 0 of a clip of no confidence at all, which no mean over clips may count.
    """
    return _weighted(torch.linalg.vector_norm(predicted_m - future_m, dim=-1), confidence)


def _weighted(errors_BTKJ: Tensor, confidence_BTKJ: Tensor) -> Tensor:
    total = (errors_BTKJ * confidence_BTKJ).flatten(1).sum(dim=1)
    weight = confidence_BTKJ.flatten(1).sum(dim=1)
    return total / torch.where(weight > 0, weight, 1.0)


def persistence(observed: Tensor, *, future_steps: int) -> Tensor:
    """The last observed latent step, repeated over the future: the baseline of every forecast."""
    return observed[:, -1:].expand(-1, future_steps, -1, -1)


@torch.no_grad()
def persistence_loss(features: Features, clip_ids: Sequence[str], *, batch_size: int) -> float:
    """Mean squared error of latent persistence over all `clip_ids`, for comparison."""
    total = 0.0
    for batch in batches_in_order(clip_ids, batch_size=batch_size):
        observed, future = features.batch(batch, torch.device("cpu")).latents
        repeated = persistence(observed, future_steps=future.shape[1])
        total += float(latent_mse(repeated, future).double().sum())
    return total / len(clip_ids)
