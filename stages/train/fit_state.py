"""How far a fit has come: its learning curve and the best weights so far."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class EpochLosses:
    """Losses of one epoch: of the training clips as it went along, of validation after it.

    The loss is the weighted sum that is trained on; of its parts, the latents' mean squared error and, where
    trajectories are predicted, the joints' mean distance in metres.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    validation_latent_error: float
    validation_distance_m: float | None = None


class PartialEpoch(NamedTuple):
    """What is done of the epoch after the curve: its steps, and the sum of their clips' losses."""

    steps_done: int = 0
    total_loss: float = 0.0


@dataclass(frozen=True, slots=True)
class FitState:
    """The learning curve so far, and the weights of the epoch that was best on validation (on the CPU)."""

    curve: tuple[EpochLosses, ...] = ()
    best_weights: Mapping[str, Tensor] = field(default_factory=dict)
    partial: PartialEpoch = field(default_factory=PartialEpoch)

    @property
    def best(self) -> EpochLosses:
        """The epoch of lowest validation loss; the first of equals."""
        return min(self.curve, key=lambda losses: losses.validation_loss)

    def after(self, losses: EpochLosses, model: nn.Module) -> "FitState":
        """The state after one more epoch, which left `model` as it is."""
        if self.curve and losses.validation_loss >= self.best.validation_loss:
            return FitState((*self.curve, losses), self.best_weights)
        weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        return FitState((*self.curve, losses), weights)
