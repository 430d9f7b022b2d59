"""What a run trains: a forecaster of latents and, where hands are predicted, the head that reads them off."""

from typing import NamedTuple

from torch import Tensor, nn

from thinkjepa.stages.train.head import TrajectoryHead
from thinkjepa.stages.train.randomness import named_generator
from thinkjepa.stages.train.shapes import ModelShape
from thinkjepa.stages.train.thinker_states import TokenBatch
from thinkjepa.stages.train.trunk import initialise
from thinkjepa.stages.train.variants import Forecaster, build_forecaster


class Forecast(NamedTuple):
    """Latents `(batch, step, patch, dim)`; joints `(batch, step, frame, joint, 3)`, metres, or None.

    `context` are the latents read off the observed steps' positions, where they were asked for.
    """

    latents: Tensor
    joints_m: Tensor | None
    context: Tensor | None = None


class ForecastModel(nn.Module):
    """A forecaster and its head; the head sees predicted latents only."""

    def __init__(self, forecaster: Forecaster, head: TrajectoryHead | None) -> None:
        super().__init__()
        self.forecaster = forecaster
        self.head = head

    def forward(
        self,
        observed: Tensor,
        pooled: Tensor | None,
        last_pose_m: Tensor | None,
        tokens: TokenBatch | None = None,
        guided: Tensor | None = None,
        *,
        with_context: bool = False,
        num_steps: int | None = None,
    ) -> Forecast:
        """`observed` `(batch, step, patch, dim)`, `pooled` `(batch, level, stream, dim)`, `last_pose_m`
        `(batch, joint, 3)`: None where the model has no thinker or no head. `tokens` are read by a model
        guided by cross-attention, and needed by it. Where `guided` `(batch,)` is 0, the sample's forecast is
        that of the unguided predictor; None guides all. `with_context` asks for `Forecast.context`,
        `num_steps` for so many future steps, rolled out where they are more than a window.
        """
        if not with_context:
            latents: Tensor = self.forecaster(observed, pooled, tokens, guided, num_steps=num_steps)
            return Forecast(latents, self.read_joints(latents, last_pose_m))
        steps = self.forecaster.all_steps(observed, pooled, tokens, guided, num_steps=num_steps)
        context, latents = steps[:, : observed.shape[1]], steps[:, observed.shape[1] :]
        return Forecast(latents, self.read_joints(latents, last_pose_m), context)

    def read_joints(self, latents: Tensor, last_pose_m: Tensor | None) -> Tensor | None:
        """What the head reads off any future latents; None where the model has none."""
        if self.head is None:
            return None
        assert last_pose_m is not None, "models with a head are always given the last pose"
        joints_m: Tensor = self.head(latents, last_pose_m)
        return joints_m


def build_model(shape: ModelShape, *, seed: int) -> ForecastModel:
    """The model that `shape` names, its parameters drawn from `seed` (and nothing else).

    The forecaster's parameters are the same with and without a head.
    """
    forecaster = build_forecaster(shape, seed=seed)
    if shape.head is None:
        return ForecastModel(forecaster, None)
    head = TrajectoryHead(shape.grid, shape.head)
    initialise(head, named_generator(seed, "head"))
    return ForecastModel(forecaster, head)
