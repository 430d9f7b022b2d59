"""The training loop: epochs of steps, validation after each, the best epoch's weights kept.

Data order is a pure function of (seed, epoch, step); no global random state is read. Losses and gradients are
normalised over the global batch, whatever the number of processes and of clips that are worked on at once.

A clip's *terms* are its loss, the error of its latents, and the mean distance of its joints (0 without head).
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from thinkjepa.cache import BatchBuffers
from thinkjepa.stages.device import BusyMachine
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.signals import EXIT_TERMINATED, noted_sigterm
from thinkjepa.stages.train.data.batches import (
    Share,
    batches_in_order,
    new_buffers,
    prefetched,
    shares_of,
    training_batches,
)
from thinkjepa.stages.train.data.features import Batch, Features
from thinkjepa.stages.train.events import EpochEnds, Report, report_nothing
from thinkjepa.stages.train.fit.losses import (
    joint_distance,
    latent_error,
    latent_loss,
    persistence,
    trajectory_error,
)
from thinkjepa.stages.train.fit.optimizer import Moment, make_optimizer, set_rates
from thinkjepa.stages.train.fit.state import EpochLosses, FitState, PartialEpoch, ResumeFile
from thinkjepa.stages.train.fit.tracking import log_epoch, log_step
from thinkjepa.stages.train.model.forecast import Forecast, ForecastModel
from thinkjepa.stages.train.randomness import is_dropped
from thinkjepa.stages.train.settings import TrainSettings

LOSS, LATENT, DISTANCE_M = range(3)
"""Columns of a clip's terms."""


class TrainProgress(Protocol):
    """Told after every optimiser step. Epochs and steps count from 1; `loss` is the global batch's."""

    def __call__(self, *, epoch: int, step: int, total_steps: int, loss: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Fitting:
    """One model being fitted: what stays the same over all epochs."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    features: Features
    accelerator: Accelerator
    settings: TrainSettings
    buffers: tuple[BatchBuffers, ...] = field(default_factory=new_buffers)

    def shares(self, batch: tuple[str, ...]) -> list[Share]:
        """The parts of a global batch that this process works on, one after another."""
        return shares_of(
            batch,
            process=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            most_clips=self.settings.clips_per_forward,
        )

    def stored(self, batches: Sequence[tuple[str, ...]]) -> Generator[Batch]:
        """The features of all shares of `batches`, read ahead."""
        shares = [share for batch in batches for share in self.shares(batch)]
        return prefetched(
            shares,
            lambda share, buffers: self.features.stored(share.clip_ids, buffers),
            buffers=self.buffers,
        )

    def terms(
        self, batch: tuple[str, ...], stored: Iterator[Batch], moment: Moment | None = None
    ) -> Iterator[Tensor]:
        """Weighted terms `(clip, 3)` of this process' clips of a global batch, part by part.

        `stored` has the features of its shares; `moment` is given in training, where guidance may be dropped.
        """
        for share in self.shares(batch):
            clips = self.features.transformed(next(stored), self.accelerator.device)
            with self.accelerator.autocast():
                forecast = self.model(
                    clips.observed,
                    clips.pooled,
                    clips.last_pose_m,
                    clips.tokens,
                    self._guided(share.clip_ids, moment),
                    with_context=self.with_context,
                    num_steps=clips.future.shape[1],
                )
            weights = torch.tensor(share.weights, device=self.accelerator.device)
            terms = clip_terms(forecast, clips, self.settings, unit_m=self.joint_unit_m)
            yield terms * weights.unsqueeze(1)

    @property
    def with_context(self) -> bool:
        """Whether the loss looks at the observed steps too; `vlm` has none of them."""
        return self.settings.context_weight > 0 and self.settings.variant != "vlm"

    @property
    def joint_unit_m(self) -> Tensor | None:
        """What the joints' errors are measured in, `(joint, 1)`; None for metres."""
        head = self.accelerator.unwrap_model(self.model).head
        return head.scale if head is not None and self.settings.trajectory_units == "spread" else None

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
        means: Tensor = self.accelerator.reduce(totals, reduction="sum").cpu().double() / len(batch)
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
    report: Report = report_nothing,
) -> FitState:
    """Train `model` (whose weights change) and return the curve with the best epoch's weights.

    Where `resume` holds an interrupted fit it is continued, to the same result as an uninterrupted one.
    SIGTERM raises SystemExit behind the step in hand, or behind the epoch where that is being validated.
    """
    optimizer = make_optimizer(model, settings)
    wrapped, wrapped_optimizer = accelerator.prepare(model, optimizer)
    state = resume.load(model, optimizer)  # after prepare, which moved the parameters to their device
    fitting = Fitting(wrapped, wrapped_optimizer, features, accelerator, settings)

    def save(state: FitState) -> None:
        if accelerator.is_main_process:
            resume.save(state, model, optimizer)

    busy = BusyMachine() if accelerator.device.type == "cpu" else None

    def after_step(**step: Any) -> None:
        progress(**step)
        if busy and (note := busy.note(threads=torch.get_num_threads())):
            report(note)

    with noted_sigterm() as stop:
        for epoch in range(len(state.curve) + 1, settings.epochs + 1):
            batches = training_batches(
                train_ids, batch_size=settings.batch_size, seed=settings.seed, epoch=epoch
            )
            train_loss = train_epoch(fitting, batches, state, progress=after_step, save=save, stop=stop)
            losses = epoch_losses(fitting, epoch, train_loss, validation_terms(fitting, validation_ids))
            log_epoch(accelerator, step=epoch * len(batches), losses=losses)
            state = state.after(losses, model)
            save(state)
            report(EpochEnds(losses, settings.epochs, best=state.best is losses))
            if stop.is_set():
                raise SystemExit(EXIT_TERMINATED)
    return state


def train_epoch(
    fitting: Fitting,
    batches: Sequence[tuple[str, ...]],
    state: FitState,
    *,
    progress: TrainProgress,
    save: Callable[[FitState], None],
    stop: threading.Event,
) -> float:
    """What is left of the epoch after `state`; returns the mean loss of its clips, each as its step saw it.

    Saves every now and then, and where it is asked to stop, after which SystemExit is raised.
    """
    fitting.model.train()
    epoch, (steps_done, total) = len(state.curve) + 1, state.partial
    saved_s = time.monotonic()
    with closing(fitting.stored(batches[steps_done:])) as stored:
        for step, batch in enumerate(batches[steps_done:], start=steps_done + 1):
            loss = train_step(fitting, batch, stored, Moment(epoch, step, steps_per_epoch=len(batches)))
            total += loss * len(batch)
            done = (epoch - 1) * len(batches) + step
            log_step(fitting.accelerator, fitting.optimizer, step=done, loss=loss)
            progress(epoch=epoch, step=step, total_steps=len(batches), loss=loss)
            if stop.is_set() or time.monotonic() - saved_s >= fitting.settings.save_every_s:
                save(replace(state, partial=PartialEpoch(step, total)))
                saved_s = time.monotonic()
            if stop.is_set():
                raise SystemExit(EXIT_TERMINATED)
    return total / sum(len(batch) for batch in batches)


def train_step(fitting: Fitting, batch: tuple[str, ...], stored: Iterator[Batch], moment: Moment) -> float:
    """One optimiser step on a global batch; returns its mean loss.

    Processes average their gradients, so each scales its sum of losses by processes / clips of the batch.
    """
    accelerator = fitting.accelerator
    totals = torch.zeros(3, device=accelerator.device)
    fitting.optimizer.zero_grad(set_to_none=True)
    for terms in fitting.terms(batch, stored, moment):
        accelerator.backward(terms[:, LOSS].sum() * (accelerator.num_processes / len(batch)))
        totals += terms.detach().sum(dim=0)
    loss = float(fitting.finite_means(totals, batch)[LOSS])
    if fitting.settings.clip_norm:
        accelerator.clip_grad_norm_(fitting.model.parameters(), fitting.settings.clip_norm)
    set_rates(fitting.optimizer, fitting.settings, moment)
    fitting.optimizer.step()
    return loss


@torch.no_grad()
def validation_terms(fitting: Fitting, clip_ids: Sequence[str]) -> Tensor:
    """Mean terms of the model over all `clip_ids`, float64."""
    fitting.model.eval()
    totals = torch.zeros(3, dtype=torch.float64)
    batches = batches_in_order(clip_ids, batch_size=fitting.settings.batch_size)
    with closing(fitting.stored(batches)) as stored:
        for batch in batches:
            summed = torch.stack([terms.sum(dim=0) for terms in fitting.terms(batch, stored)]).sum(dim=0)
            totals += fitting.finite_means(summed, batch) * len(batch)
    return totals / len(clip_ids)


def untrained_loss(
    model: ForecastModel,
    features: Features,
    clip_ids: Sequence[str],
    settings: TrainSettings,
    accelerator: Accelerator,
) -> float:
    """Mean loss over all `clip_ids` of a model as it is, which is moved to the device."""
    model.to(accelerator.device)
    idle = torch.optim.SGD(model.parameters())  # a fitting has an optimiser; this one takes no step
    return float(validation_terms(Fitting(model, idle, features, accelerator, settings), clip_ids)[LOSS])


def clip_terms(
    forecast: Forecast, clips: Batch, settings: TrainSettings, *, unit_m: Tensor | None = None
) -> Tensor:
    """Each clip's terms `(clip, 3)`: loss, latent error, joints' distance. `unit_m`: the joints' unit."""
    latent = latent_error(forecast.latents.detach(), clips.future.detach())
    weighted = settings.latent_weight * latent_loss_of(forecast, clips, settings)
    if forecast.joints_m is None or clips.trajectory is None:
        return torch.stack((weighted, latent, torch.zeros_like(latent)), dim=1)
    target = clips.trajectory
    confidence = target.future_confidence
    if settings.anchor == "last_pose":  # no displacement is known where no pose was
        confidence = confidence * target.last_known[:, None, None]
    joints = trajectory_error(forecast.joints_m, target.future_m, confidence, unit_m=unit_m)
    loss = weighted + settings.trajectory_weight * joints
    distance_m = joint_distance(forecast.joints_m.detach(), target.future_m.detach(), confidence)
    return torch.stack((loss, latent, distance_m), dim=1)


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
