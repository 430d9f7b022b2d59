"""The training loop: epochs of steps, validation after each, the best epoch's weights kept.

Data order is a pure function of (seed, epoch, step); no global random state is read. Losses and gradients are
normalised over the global batch, whatever the number of processes and of clips that are worked on at once.

A clip's *terms* are its loss, the error of its latents, and the mean distance of its joints (0 without head).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.batches import batches_in_order, shares_of, training_batches
from thinkjepa.stages.train.features import Batch, Features
from thinkjepa.stages.train.fit_state import EpochLosses, FitState
from thinkjepa.stages.train.losses import (
    joint_distance,
    latent_error,
    latent_loss,
    persistence,
    trajectory_error,
)
from thinkjepa.stages.train.model import Forecast, ForecastModel
from thinkjepa.stages.train.randomness import is_dropped
from thinkjepa.stages.train.resume import ResumeFile
from thinkjepa.stages.train.schedule import rate_factor
from thinkjepa.stages.train.settings import TrainSettings

LOSS, LATENT, DISTANCE_M = range(3)
"""Columns of a clip's terms."""

GATES = ("gates", "mixture")
"""How names end of the few parameters that open the guidance or choose its levels: rates of their own."""


class TrainProgress(Protocol):
    """Told after every optimiser step. Epochs and steps count from 1; `loss` is the global batch's."""

    def __call__(self, *, epoch: int, step: int, total_steps: int, loss: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Moment:
    """A step of training; epoch and step count from 1."""

    epoch: int
    step: int
    steps_per_epoch: int


@dataclass(frozen=True, slots=True)
class Fitting:
    """One model being fitted: what stays the same over all epochs."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    features: Features
    accelerator: Accelerator
    settings: TrainSettings

    def terms(self, batch: tuple[str, ...], moment: Moment | None = None) -> Iterator[Tensor]:
        """Weighted terms `(clip, 3)` of this process' clips of a global batch, part by part.

        `moment` is given in training, where guidance may be dropped.
        """
        shares = shares_of(
            batch,
            process=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            most_clips=self.settings.clips_per_forward,
        )
        for share in shares:
            clips = self.features.batch(share.clip_ids, self.accelerator.device)
            with self.accelerator.autocast():
                forecast = self.model(
                    clips.observed,
                    clips.pooled,
                    clips.last_pose_m,
                    clips.tokens,
                    self._guided(share.clip_ids, moment),
                    with_context=self.with_context,
                )
            weights = torch.tensor(share.weights, device=self.accelerator.device)
            yield clip_terms(forecast, clips, self.settings) * weights.unsqueeze(1)

    @property
    def with_context(self) -> bool:
        """Whether the loss looks at the observed steps too; `vlm` has none of them."""
        return self.settings.context_weight > 0 and self.settings.variant != "vlm"

    def _guided(self, clip_ids: tuple[str, ...], moment: Moment | None) -> Tensor | None:
        """1 or 0 for each clip, None where no guidance is ever dropped."""
        share, seed = self.settings.drop_guidance, self.settings.seed
        if moment is None or share == 0:
            return None
        kept = [
            not is_dropped(clip_id, share=share, seed=seed, epoch=moment.epoch, step=moment.step)
            for clip_id in clip_ids
        ]
        return torch.tensor(kept, dtype=torch.float32, device=self.accelerator.device)

    def finite_means(self, totals: Tensor, batch: tuple[str, ...]) -> Tensor:
        """Mean terms of a global batch from this process' sums. Raises StageError if any is not finite."""
        means: Tensor = self.accelerator.reduce(totals, reduction="sum").double().cpu() / len(batch)
        if not means.isfinite().all():  # equal on all processes, so that all of them stop
            raise StageError(
                f"loss is {float(means[LOSS])} on clips {', '.join(batch)}: check their features "
                "(thinkjepa-cache verify); if those are finite, lower the learning rate"
            )
        return means


def fit(
    model: ForecastModel,
    features: Features,
    *,
    train_ids: Sequence[str],
    validation_ids: Sequence[str],
    settings: TrainSettings,
    accelerator: Accelerator,
    resume: ResumeFile,
    progress: TrainProgress,
) -> FitState:
    """Train `model` (whose weights change) and return the curve with the best epoch's weights.

    Where `resume` holds an interrupted fit it is continued, to the same result as an uninterrupted one.
    """
    optimizer = make_optimizer(model, settings)
    wrapped, wrapped_optimizer = accelerator.prepare(model, optimizer)
    state = resume.load(model, optimizer)  # after prepare, which moved the parameters to their device
    fitting = Fitting(wrapped, wrapped_optimizer, features, accelerator, settings)
    for epoch in range(len(state.curve) + 1, settings.epochs + 1):
        batches = training_batches(train_ids, batch_size=settings.batch_size, seed=settings.seed, epoch=epoch)
        train_loss = train_epoch(fitting, batches, epoch=epoch, progress=progress)
        losses = epoch_losses(fitting, epoch, train_loss, validation_terms(fitting, validation_ids))
        state = state.after(losses, model)
        if accelerator.is_main_process:
            resume.save(state, model, optimizer)
    return state


def train_epoch(
    fitting: Fitting, batches: Sequence[tuple[str, ...]], *, epoch: int, progress: TrainProgress
) -> float:
    """One pass over `batches`; returns the mean loss of the clips, each as its step saw it."""
    fitting.model.train()
    total, num_clips = 0.0, sum(len(batch) for batch in batches)
    for step, batch in enumerate(batches, start=1):
        loss = train_step(fitting, batch, Moment(epoch, step, steps_per_epoch=len(batches)))
        total += loss * len(batch)
        progress(epoch=epoch, step=step, total_steps=len(batches), loss=loss)
    return total / num_clips


def train_step(fitting: Fitting, batch: tuple[str, ...], moment: Moment) -> float:
    """One optimiser step on a global batch; returns its mean loss.

    Processes average their gradients, so each scales its sum of losses by processes / clips of the batch.
    """
    accelerator = fitting.accelerator
    totals = torch.zeros(3, device=accelerator.device)
    fitting.optimizer.zero_grad(set_to_none=True)
    for terms in fitting.terms(batch, moment):
        accelerator.backward(terms[:, LOSS].sum() * (accelerator.num_processes / len(batch)))
        totals += terms.detach().sum(dim=0)
    loss = float(fitting.finite_means(totals, batch)[LOSS])
    if fitting.settings.clip_norm:
        accelerator.clip_grad_norm_(fitting.model.parameters(), fitting.settings.clip_norm)
    set_rates(fitting.optimizer, fitting.settings, moment)
    fitting.optimizer.step()
    return loss


def set_rates(optimizer: torch.optim.Optimizer, settings: TrainSettings, moment: Moment) -> None:
    """Give every group of parameters the learning rate of this step."""
    done = (moment.epoch - 1) * moment.steps_per_epoch + moment.step - 1
    for group in optimizer.param_groups:
        group["lr"] = group["full_rate"] * rate_factor(
            settings.schedule,
            part=group["part"],
            step=done,
            total_steps=settings.epochs * moment.steps_per_epoch,
            warmup=settings.warmup,
        )


@torch.no_grad()
def validation_terms(fitting: Fitting, clip_ids: Sequence[str]) -> Tensor:
    """Mean terms of the model over all `clip_ids`, float64."""
    fitting.model.eval()
    totals = torch.zeros(3, dtype=torch.float64)
    for batch in batches_in_order(clip_ids, batch_size=fitting.settings.batch_size):
        summed = torch.stack([terms.sum(dim=0) for terms in fitting.terms(batch)]).sum(dim=0)
        totals += fitting.finite_means(summed, batch) * len(batch)
    return totals / len(clip_ids)


def clip_terms(forecast: Forecast, clips: Batch, settings: TrainSettings) -> Tensor:
    """Each clip's terms `(clip, 3)`: loss, latent error, joints' distance."""
    latent = latent_error(forecast.latents, clips.future)
    weighted = settings.latent_weight * latent_loss_of(forecast, clips, settings)
    if forecast.joints_m is None or clips.trajectory is None:
        return torch.stack((weighted, latent.detach(), torch.zeros_like(latent)), dim=1)
    target = clips.trajectory
    confidence = target.future_confidence
    if settings.anchor == "last_pose":  # no displacement is known where no pose was
        confidence = confidence * target.last_known[:, None, None]
    joints = trajectory_error(forecast.joints_m, target.future_m, confidence)
    loss = weighted + settings.trajectory_weight * joints
    distance_m = joint_distance(forecast.joints_m.detach(), target.future_m, confidence)
    return torch.stack((loss, latent.detach(), distance_m), dim=1)


def latent_loss_of(forecast: Forecast, clips: Batch, settings: TrainSettings) -> Tensor:
    """Each clip's latent loss `(clip,)`: of the future steps and, by their weight, of the observed ones."""
    loss = latent_loss(forecast.latents, clips.future, settings.latent_loss)
    if forecast.context is None:
        return loss
    return loss + settings.context_weight * latent_loss(
        forecast.context, clips.observed, settings.latent_loss
    )


def epoch_losses(fitting: Fitting, epoch: int, train_loss: float, validation: Tensor) -> EpochLosses:
    """The point of the learning curve after an epoch."""
    with_joints = fitting.features.supervision is not None
    return EpochLosses(
        epoch=epoch,
        train_loss=train_loss,
        validation_loss=float(validation[LOSS]),
        validation_latent_error=float(validation[LATENT]),
        validation_distance_m=float(validation[DISTANCE_M]) if with_joints else None,
    )


@torch.no_grad()
def persistence_loss(features: Features, clip_ids: Sequence[str], *, batch_size: int) -> float:
    """Mean squared error of latent persistence over all `clip_ids`, for comparison."""
    total = 0.0
    for batch in batches_in_order(clip_ids, batch_size=batch_size):
        clips = features.batch(batch, torch.device("cpu"))
        repeated = persistence(clips.observed, future_steps=clips.future.shape[1])
        total += float(latent_error(repeated, clips.future).double().sum())
    return total / len(clip_ids)


def make_optimizer(model: ForecastModel, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW: weight decay on matrices only, rates of their own for the head and the guidance gates."""
    rates = {"head": settings.head_learning_rate, "gates": settings.gate_learning_rate}
    groups: dict[tuple[str, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        part = "gates" if name.endswith(GATES) else name.split(".")[0]
        decay = settings.weight_decay if parameter.ndim >= 2 and part != "gates" else 0.0
        groups.setdefault((part, decay), []).append(parameter)
    return torch.optim.AdamW(
        {
            "params": parameters,
            "lr": (rate := rates.get(part, settings.learning_rate)),
            "full_rate": rate,
            "part": part,
            "weight_decay": decay,
        }
        for (part, decay), parameters in groups.items()
    )
