"""The training loop: epochs of steps, validation after each, the best epoch's weights kept.

Data order is a pure function of (seed, epoch, step). No global random state is read. Losses and gradients are
normalized over the global batch, whatever the number of processes and the size of micro-batches.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from thinkjepa.cache import BatchBuffers
from thinkjepa.stages.device import BusyMachine
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.signals import Stopping, noted_sigterm
from thinkjepa.stages.train.data.batches import (
    MicroBatch,
    batches_in_order,
    micro_batches,
    new_buffers,
    prefetched,
    training_batches,
)
from thinkjepa.stages.train.data.features import Batch, Features
from thinkjepa.stages.train.data.poses import ObservedPoses
from thinkjepa.stages.train.events import EpochEnds, Report, report_nothing
from thinkjepa.stages.train.fit.head_share import choose_share, clusters_of, distances_by_share
from thinkjepa.stages.train.fit.losses import (
    COLUMNS,
    DISTANCE_M,
    JOINT_PART,
    LATENT_MSE,
    LATENT_PART,
    LOSS,
    WITH_DISTANCE,
    per_sample_losses,
)
from thinkjepa.stages.train.fit.optimizer import Step, make_optimizer, set_rates
from thinkjepa.stages.train.fit.state import EpochLosses, FitState, PartialEpoch, ResumeFile
from thinkjepa.stages.train.fit.tracking import log_epoch, log_step
from thinkjepa.stages.train.model.forecast import ForecastModel
from thinkjepa.stages.train.model.head import TrajectoryHead
from thinkjepa.stages.train.model.variants import Forecaster
from thinkjepa.stages.train.randomness import is_dropped
from thinkjepa.stages.train.settings import TrainSettings


class TrainProgress(Protocol):
    """Called after every optimizer step. Epochs and steps count from 1, `loss` is the global batch's."""

    def __call__(self, *, epoch: int, step: int, total_steps: int, loss: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Trainer:
    """Trainer state: a model with its optimizer, features and settings, the same over all epochs."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    features: Features
    accelerator: Accelerator
    settings: TrainSettings
    groups: Mapping[str, str] = field(default_factory=dict)
    """The group of each clip by its id, of those that validate."""
    buffers: tuple[BatchBuffers, ...] = field(default_factory=new_buffers)

    def micro_batches(self, batch: tuple[str, ...]) -> list[MicroBatch]:
        """The parts of a global batch that this process works on, one after another."""
        return micro_batches(
            batch,
            process=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            most_clips=self.settings.clips_per_forward,
        )

    def stored(self, batches: Sequence[tuple[str, ...]]) -> Generator[Batch]:
        """The features of all micro-batches of `batches`, read ahead."""
        parts = [part for batch in batches for part in self.micro_batches(batch)]
        return prefetched(
            parts,
            lambda part, buffers: self.features.stored(part.clip_ids, buffers),
            buffers=self.buffers,
        )

    def losses(
        self, batch: tuple[str, ...], stored: Iterator[Batch], step: Step | None = None
    ) -> Iterator[Tensor]:
        """Weighted per-sample losses `(clip, column)` of this process' clips, micro-batch by micro-batch.

        `stored` yields the features of the micro-batches. `step` is given in training, where guidance and
        poses may be dropped. Without one, a column for each share of the head follows: the joints' distance.
        """
        for part in self.micro_batches(batch):
            clips = self.features.transformed(next(stored), self.accelerator.device)
            clips = self._with_dropped_poses(clips, part.clip_ids, step)
            with self.accelerator.autocast():
                forecast = self.model(
                    clips.observed,
                    clips.pooled,
                    clips.poses,
                    clips.tokens,
                    self._guided(part.clip_ids, step),
                    with_next_steps=self.settings.predicts_next_steps,
                    num_steps=self.features.future_steps,
                )
            weights = torch.tensor(part.weights, device=self.accelerator.device)
            losses = per_sample_losses(
                forecast,
                clips,
                self.settings,
                unit_m=self._joint_unit_m(clips.poses),
                latent_unit=self.latent_unit,
            )
            if step is None and forecast.joints_m is not None:
                by_share = distances_by_share(self.head, forecast.joints_m, clips)
                losses = torch.cat((losses, by_share), dim=1)
            yield losses * weights.unsqueeze(1)

    def losses_by_clip(self, batch: tuple[str, ...], stored: Iterator[Batch]) -> Tensor:
        """The weighted losses of a global batch's clips, float64 on the CPU, equal on all processes."""
        found: Tensor | None = None
        for part, losses in zip(self.micro_batches(batch), self.losses(batch, stored), strict=True):
            if found is None:
                found = losses.new_zeros(len(batch), losses.shape[1])
            found[[batch.index(clip_id) for clip_id in part.clip_ids]] += losses
        gathered: Tensor = self.accelerator.reduce(found, reduction="sum")
        return gathered.cpu().double()

    @property
    def head(self) -> TrajectoryHead:
        """The head of a model that has one."""
        head: TrajectoryHead = self.accelerator.unwrap_model(self.model).head
        return head

    @property
    def head_share(self) -> float | None:
        """The share of the head that counts. None without a head."""
        has_head = self.accelerator.unwrap_model(self.model).head is not None
        return float(self.head.share) if has_head else None

    def _joint_unit_m(self, poses: ObservedPoses | None) -> Tensor | None:
        """Unit of the joints' errors in the loss, as `TrajectoryHead.unit_m`. None stands for one metre."""
        head = self.accelerator.unwrap_model(self.model).head
        if head is None or poses is None or self.settings.trajectory_units == "metres":
            return None
        unit_m: Tensor = head.unit_m(poses)
        return unit_m

    def _with_dropped_poses(self, clips: Batch, clip_ids: tuple[str, ...], step: Step | None) -> Batch:
        """The clips, with nothing known of the observed poses of those that train without."""
        if step is None or clips.trajectory is None or not self.settings.drops_poses:
            return clips
        dropped = self._drawn("drop poses", clip_ids, self.settings.drop_poses, step)
        poses = clips.trajectory.poses.without(dropped)
        return replace(clips, trajectory=replace(clips.trajectory, poses=poses))

    @property
    def latent_unit(self) -> Tensor | None:
        """Unit of the latents' errors in the loss, `(dim,)`. None stands for the encoder's."""
        forecaster: Forecaster | None = self.accelerator.unwrap_model(self.model).forecaster
        return None if forecaster is None else forecaster.units.of_the_loss

    def _guided(self, clip_ids: tuple[str, ...], step: Step | None) -> Tensor | None:
        """1 or 0 for each clip, None where no guidance is dropped."""
        share = self.settings.drop_guidance
        if step is None or share == 0:
            return None
        return 1 - self._drawn("drop", clip_ids, share, step)

    def _drawn(self, purpose: str, clip_ids: tuple[str, ...], share: float, step: Step) -> Tensor:
        """1 for each clip that is drawn at this step, else 0."""
        seed, epoch, number = self.settings.seed, step.epoch, step.number
        drawn = [
            is_dropped(clip_id, purpose, share=share, seed=seed, epoch=epoch, step=number)
            for clip_id in clip_ids
        ]
        return torch.tensor(drawn, dtype=torch.float32, device=self.accelerator.device)

    def finite_means(self, totals: Tensor, batch: tuple[str, ...]) -> Tensor:
        """Mean losses of a global batch from this process' sums. Raises StageError if any is not finite."""
        means: Tensor = self.accelerator.reduce(totals, reduction="sum").cpu().double() / len(batch)
        return checked(means, batch)


def checked(means: Tensor, batch: tuple[str, ...]) -> Tensor:
    """The mean losses of a global batch, which all processes have. Raises StageError if any is not finite."""
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
    groups: Mapping[str, str] | None = None,
) -> FitState:
    """Train `model` (whose weights change) and return the curve with the best epoch's weights.

    `groups` has the group of each validation clip by its id. Without it, each video is one.
    Where `resume` holds an interrupted fit it is continued, to the same result as an uninterrupted one.
    SIGTERM raises SystemExit after the current step, or after the epoch while that is validated.
    """
    optimizer = make_optimizer(model, settings)
    wrapped, wrapped_optimizer = accelerator.prepare(model, optimizer)
    found = resume.load(model, optimizer)  # after prepare, which moved the parameters to their device
    state = replace(found, select_by=settings.select_by)
    trainer = Trainer(wrapped, wrapped_optimizer, features, accelerator, settings, groups or {})

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
            done = train_epoch(trainer, batches, state, progress=after_step, save=save, stop=stop)
            validation = validation_losses(trainer, validation_ids)
            losses = replace(
                epoch_losses(
                    epoch, done, validation, num_clips=len(train_ids), with_latents=features.reads_latents
                ),
                head_share=trainer.head_share,
            )
            log_epoch(accelerator, step=epoch * len(batches), losses=losses)
            state = state.after(losses, model)
            save(state)
            report(EpochEnds(losses, settings.epochs, best=state.best is losses))
            stop.end()
    return state


def train_epoch(
    trainer: Trainer,
    batches: Sequence[tuple[str, ...]],
    state: FitState,
    *,
    progress: TrainProgress,
    save: Callable[[FitState], None],
    stop: Stopping,
) -> PartialEpoch:
    """Train the rest of the epoch after `state`. Returns what it came to, each clip's loss at its own step.

    Saves every `save_every_s`, and before SystemExit where `stop` asks for it.
    """
    trainer.model.train()
    use_whole_head(trainer)
    epoch, done = len(state.curve) + 1, state.partial
    saved_s, left = time.monotonic(), batches[done.steps_done :]
    with closing(trainer.stored(left)) as stored:
        for number, batch in enumerate(left, start=done.steps_done + 1):
            step = Step(epoch, number, steps_per_epoch=len(batches))
            loss, gradients = train_step(trainer, batch, stored, step)
            total = done.total_loss + loss * len(batch)
            done = PartialEpoch(number, total, *(gradients or done[2:]))
            log_step(trainer.accelerator, trainer.optimizer, step=step.done + 1, loss=loss)
            progress(epoch=epoch, step=number, total_steps=len(batches), loss=loss)
            if stop.asked or time.monotonic() - saved_s >= trainer.settings.save_every_s:
                save(replace(state, partial=done))
                saved_s = time.monotonic()
            stop.end()
    return done


def train_step(
    trainer: Trainer, batch: tuple[str, ...], stored: Iterator[Batch], step: Step
) -> tuple[float, tuple[float, float | None] | None]:
    """One optimizer step on a global batch. Returns its mean loss and, at an epoch's first step, gradients.

    Processes average their gradients, so each scales its sum of losses by processes / clips of the batch.
    """
    accelerator = trainer.accelerator
    totals, gradients = torch.zeros(len(COLUMNS), device=accelerator.device), None
    trainer.optimizer.zero_grad(set_to_none=True)
    for losses in trainer.losses(batch, stored, step):
        if step.number == 1 and gradients is None and trainer.features.reads_latents:
            gradients = gradient_norms(trainer, losses)
        accelerator.backward(losses[:, LOSS].sum() * (accelerator.num_processes / len(batch)))
        totals += losses.detach().sum(dim=0)
    loss = float(trainer.finite_means(totals, batch)[LOSS])
    if trainer.settings.clip_norm:
        accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.settings.clip_norm)
    set_rates(trainer.optimizer, trainer.settings, step)
    trainer.optimizer.step()
    return loss, gradients


def gradient_norms(trainer: Trainer, losses: Tensor) -> tuple[float, float | None]:
    """Norms of the gradients of the latents' and the joints' part of these clips' mean loss.

    They are taken over the forecaster's parameters, which both parts train. The joints' is None without a
    head. `losses` can be propagated back once more.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    parameters = [parameter for parameter in model.forecaster.parameters() if parameter.requires_grad]

    def norm(column: int) -> float:
        part = losses[:, column].mean()
        found = torch.autograd.grad(part, parameters, retain_graph=True, allow_unused=True)
        return float(torch.nn.utils.get_total_norm([gradient for gradient in found if gradient is not None]))

    return norm(LATENT_PART), None if model.head is None else norm(JOINT_PART)


@torch.no_grad()
def validation_losses(trainer: Trainer, clip_ids: Sequence[str]) -> Tensor:
    """Mean losses of the model over all `clip_ids`, by the columns of `per_sample_losses`, float64.

    The distance is the mean over the clips that have one, NaN where none has. It is that of the share of the
    head that `choose_share` chooses, which the head has from then on. The loss is that of the whole head.
    """
    trainer.model.eval()
    use_whole_head(trainer)
    found = []
    batches = batches_in_order(clip_ids, batch_size=trainer.settings.batch_size)
    with closing(trainer.stored(batches)) as stored:
        for batch in batches:
            found.append(trainer.losses_by_clip(batch, stored))
            checked(found[-1].mean(dim=0), batch)
    losses = torch.cat(found)
    means, by_share = losses[:, : len(COLUMNS)].mean(dim=0), losses[:, len(COLUMNS) :]
    distances = by_share.masked_fill(losses[:, [WITH_DISTANCE]] == 0, torch.nan)
    means[DISTANCE_M] = torch.nan
    if distances.shape[1]:
        chosen = choose_share(distances, clusters_of(clip_ids, trainer.groups))
        trainer.head.share.fill_(trainer.head.shares[chosen])
        means[DISTANCE_M] = distances[:, chosen].nanmean()
    return means


def use_whole_head(trainer: Trainer) -> None:
    """Let all count that the head adds to its start, as in training."""
    if trainer.accelerator.unwrap_model(trainer.model).head is not None:
        trainer.head.share.fill_(1.0)


def untrained_loss(
    model: ForecastModel,
    features: Features,
    clip_ids: Sequence[str],
    settings: TrainSettings,
    accelerator: Accelerator,
) -> float:
    """Mean loss over all `clip_ids` of a model as it is, which is moved to the device."""
    model.to(accelerator.device)
    idle = torch.optim.SGD(model.parameters())  # takes no step
    return float(validation_losses(Trainer(model, idle, features, accelerator, settings), clip_ids)[LOSS])


def epoch_losses(
    epoch: int, done: PartialEpoch, validation: Tensor, *, num_clips: int, with_latents: bool = True
) -> EpochLosses:
    """The learning curve's point after an epoch on `num_clips`, from the validation clips' mean losses."""
    return EpochLosses(
        epoch=epoch,
        train_loss=done.total_loss / num_clips,
        validation_loss=float(validation[LOSS]),
        validation_latent_error=float(validation[LATENT_MSE]) if with_latents else None,
        validation_distance_m=float(validation[DISTANCE_M]) if validation[WITH_DISTANCE] else None,
        latent_gradient=done.latent_gradient,
        joint_gradient=done.joint_gradient,
    )
