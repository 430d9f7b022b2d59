"""Units of the predictor: how latents enter it, and how what it puts out becomes latents again.

Latents outside a forecaster are always in the encoder's units: context, predictions, metrics. Inside they may
be whitened. A prediction of the change adds what is put out to the last latents that a position knows, so
that a predictor that puts out zeros is latent persistence.
"""

import torch
from torch import Tensor, nn

from thinkjepa.stages.train.data.statistics import LatentStatistics
from thinkjepa.stages.train.model.config import LatentGrid, PredictionTarget


class LatentUnits(nn.Module):
    """Whitening per dim from training statistics, and the addition of a predicted change.

    A whitened output is in the deviation of its target: of latents from their mean, or of the change.
    Without whitening there is nothing to save with the weights.
    """

    mean: Tensor
    scale: Tensor
    target_scale: Tensor

    def __init__(self, grid: LatentGrid, target: PredictionTarget) -> None:
        super().__init__()
        self.target = target
        if target.whitened:
            self.register_buffer("mean", torch.zeros(grid.dim))
            self.register_buffer("scale", torch.ones(grid.dim))
            self.register_buffer("target_scale", torch.ones(grid.dim))

    def set_statistics(self, statistics: LatentStatistics) -> None:
        """Whiten with these from now on. They are saved with the weights."""
        assert self.target.whitened, "only whitened latents have statistics"
        self.mean.copy_(statistics.mean)
        self.scale.copy_(statistics.scale)
        is_change = self.target.kind == "change"
        self.target_scale.copy_(statistics.change_scale if is_change else statistics.scale)

    def entering(self, latents: Tensor) -> Tensor:
        """Latents as the predictor reads them."""
        return (latents - self.mean) / self.scale if self.target.whitened else latents

    def leaving(self, outputs: Tensor, known: Tensor) -> Tensor:
        """Latents that the outputs `(batch, step, patch, dim)` stand for.

        `known` has the last latents that each step's position knows; its steps may be one for all.
        """
        if self.target.whitened:
            outputs = outputs.float() * self.target_scale
        if self.target.kind == "change":
            return known + outputs.float()
        return outputs + self.mean if self.target.whitened else outputs

    @property
    def of_the_loss(self) -> Tensor | None:
        """Unit of the latents' errors in the loss, `(dim,)`. None stands for the encoder's."""
        return self.target_scale if self.target.whitened else None
