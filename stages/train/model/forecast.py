"""A forecast model: latents by a forecaster, joints by the trajectory head, read step by step.

The head reads the joints at a latent step's frames from that step's latents and no other's.
"""

from typing import NamedTuple

from torch import Tensor, nn

from thinkjepa.stages.train.data.poses import ObservedPoses
from thinkjepa.stages.train.data.tokens import TokenBatch
from thinkjepa.stages.train.model.config import ModelShape
from thinkjepa.stages.train.model.head import TrajectoryHead
from thinkjepa.stages.train.model.trunk import initialize
from thinkjepa.stages.train.model.variants import Forecaster, build_forecaster
from thinkjepa.stages.train.randomness import named_generator


class Forecast(NamedTuple):
    """Latents `(batch, step, patch, dim)`; joints `(batch, step, frame, joint, 3)`, metres, or None.

    `next_steps` are the latents of the step after each observed one `(batch, observed step, patch, dim)`,
    predicted at the observed step's position, where they were asked for.
    """

    latents: Tensor
    joints_m: Tensor | None
    next_steps: Tensor | None = None


class ForecastModel(nn.Module):
    """A forecaster and its head, which reads predicted latents only."""

    def __init__(self, forecaster: Forecaster, head: TrajectoryHead | None) -> None:
        super().__init__()
        self.forecaster = forecaster
        self.head = head

    def forward(
        self,
        observed: Tensor,
        pooled: Tensor | None,
        poses: ObservedPoses | None,
        tokens: TokenBatch | None = None,
        guided: Tensor | None = None,
        *,
        with_next_steps: bool = False,
        num_steps: int | None = None,
    ) -> Forecast:
        """`observed` `(batch, step, patch, dim)`, `pooled` `(batch, level, stream, dim)` and `poses` are
        None where the model has no thinker or no head. `tokens` are read by a model guided by
        cross-attention, and needed by it. Where `guided` `(batch,)` is 0, the sample's forecast is
        that of the unguided predictor; None guides all. `with_next_steps` asks for `Forecast.next_steps`,
        `num_steps` for so many future steps, rolled out where they are more than a window.
        """
        if not with_next_steps:
            latents: Tensor = self.forecaster(observed, pooled, tokens, guided, num_steps=num_steps)
            return Forecast(latents, self.read_joints(latents, poses))
        steps = self.forecaster.all_steps(observed, pooled, tokens, guided, num_steps=num_steps)
        next_steps, latents = steps[:, : observed.shape[1]], steps[:, observed.shape[1] :]
        return Forecast(latents, self.read_joints(latents, poses), next_steps)

    def read_joints(self, latents: Tensor, poses: ObservedPoses | None) -> Tensor | None:
        """Joints from any future latents. None where the model has no head."""
        if self.head is None:
            return None
        assert poses is not None, "models with a head are always given observed poses"
        joints_m: Tensor = self.head(latents, poses)
        return joints_m


def build_model(shape: ModelShape, *, seed: int) -> ForecastModel:
    """The model that `shape` names, its parameters drawn from `seed` (and nothing else).

    The forecaster's parameters are the same with and without a head.
    """
    forecaster = build_forecaster(shape, seed=seed)
    if shape.head is None:
        return ForecastModel(forecaster, None)
    head = TrajectoryHead(shape)
    initialize(head, named_generator(seed, "head"))
    head.begin_at_start()
    return ForecastModel(forecaster, head)
