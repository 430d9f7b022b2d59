"""The training loop: epochs of steps, validation after each, the best epoch's weights kept.

Data order is a pure function of (seed, epoch, step); no global random state is read. Losses and gradients are
normalised over the global batch, whatever the number of processes and of clips that are worked on at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.batches import batches_in_order, shares_of, training_batches
from thinkjepa.stages.train.features import Features
from thinkjepa.stages.train.fit_state import EpochLosses, FitState
from thinkjepa.stages.train.losses import latent_error, persistence
from thinkjepa.stages.train.resume import ResumeFile
from thinkjepa.stages.train.settings import TrainSettings
from thinkjepa.stages.train.variants import Forecaster


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

    def errors(self, batch: tuple[str, ...]) -> Iterator[Tensor]:
        """Weighted errors `(clip,)` of this process' clips of a global batch, part by part."""
        shares = shares_of(
            batch,
            process=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            most_clips=self.settings.clips_per_forward,
        )
        for share in shares:
            clips = self.features.batch(share.clip_ids, self.accelerator.device)
            with self.accelerator.autocast():
                predicted = self.model(clips.observed, clips.pooled)
            weights = torch.tensor(share.weights, device=self.accelerator.device)
            yield latent_error(predicted, clips.future) * weights

    def finite_mean(self, total: Tensor, batch: tuple[str, ...]) -> float:
        """Mean error of a global batch from this process' `total`. Raises StageError if it is not finite."""
        summed: Tensor = self.accelerator.reduce(total, reduction="sum")
        mean = float(summed) / len(batch)
        if mean - mean != 0:  # infinity or NaN; equal on all processes, so that all of them stop
            raise StageError(
                f"loss is {mean} on clips {', '.join(batch)}: check their features (thinkjepa-cache verify); "
                "if those are finite, lower the learning rate"
            )
        return mean


def fit(
    model: Forecaster,
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
        losses = EpochLosses(epoch, train_loss, validation_loss(fitting, validation_ids))
        state = state.after(losses, model)
        if accelerator.is_main_process:
            resume.save(state, model, optimizer)
    return state


def train_epoch(
    fitting: Fitting, batches: Sequence[tuple[str, ...]], *, epoch: int, progress: TrainProgress
) -> float:
    """One pass over `batches`; returns the mean error of the clips, each as its step saw it."""
    fitting.model.train()
    total, num_clips = 0.0, sum(len(batch) for batch in batches)
    for step, batch in enumerate(batches, start=1):
        loss = train_step(fitting, batch)
        total += loss * len(batch)
        progress(epoch=epoch, step=step, total_steps=len(batches), loss=loss)
    return total / num_clips


def train_step(fitting: Fitting, batch: tuple[str, ...]) -> float:
    """One optimiser step on a global batch; returns its mean error.

    Processes average their gradients, so each scales its sum of errors by processes / clips of the batch.
    """
    accelerator = fitting.accelerator
    total = torch.zeros((), device=accelerator.device)
    fitting.optimizer.zero_grad(set_to_none=True)
    for errors in fitting.errors(batch):
        accelerator.backward(errors.sum() * (accelerator.num_processes / len(batch)))
        total += errors.detach().sum()
    loss = fitting.finite_mean(total, batch)
    fitting.optimizer.step()
    return loss


@torch.no_grad()
def validation_loss(fitting: Fitting, clip_ids: Sequence[str]) -> float:
    """Mean squared error of the model over all `clip_ids`."""
    fitting.model.eval()
    total = 0.0
    for batch in batches_in_order(clip_ids, batch_size=fitting.settings.batch_size):
        summed = torch.stack([errors.sum() for errors in fitting.errors(batch)]).sum()
        total += fitting.finite_mean(summed, batch) * len(batch)
    return total / len(clip_ids)


@torch.no_grad()
def persistence_loss(features: Features, clip_ids: Sequence[str], *, batch_size: int) -> float:
    """Mean squared error of latent persistence over all `clip_ids`, for comparison."""
    total = 0.0
    for batch in batches_in_order(clip_ids, batch_size=batch_size):
        clips = features.batch(batch, torch.device("cpu"))
        repeated = persistence(clips.observed, future_steps=clips.future.shape[1])
        total += float(latent_error(repeated, clips.future).double().sum())
    return total / len(clip_ids)


def make_optimizer(model: Forecaster, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW: weight decay on matrices only, a learning rate of its own for the guidance gates."""
    named = list(model.named_parameters())
    gates = [parameter for name, parameter in named if name.endswith("gates")]
    matrices = [parameter for name, parameter in named if parameter.ndim >= 2]
    rest = [p for name, p in named if p.ndim < 2 and not name.endswith("gates")]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": rest, "weight_decay": 0.0},
        {"params": gates, "weight_decay": 0.0, "lr": settings.gate_learning_rate},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.learning_rate)
