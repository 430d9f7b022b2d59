"""A forecast model: latents by a forecaster, joints by the trajectory head, read step by step.

    thinkjepa, jepa    the head reads the joints at a latent step's frames from that step's latents
    vlm                a reader reads them off the thinker's states and the observed poses
    poses              a reader reads them off the observed poses, and there is no forecaster

`vlm` and `poses` differ in the thinker's states alone. With `--head-inputs latents`, the paper's head, `vlm`
reads joints off its latents, too.
"""

from typing import NamedTuple

from torch import Tensor, nn

from thinkjepa.stages.train.data.poses import ObservedPoses
from thinkjepa.stages.train.data.statistics import StateStatistics
from thinkjepa.stages.train.data.tokens import ThinkerStates, TokenBatch
from thinkjepa.stages.train.model.config import ModelShape
from thinkjepa.stages.train.model.head import TrajectoryHead
from thinkjepa.stages.train.model.reader import StepReader
from thinkjepa.stages.train.model.trunk import initialize
from thinkjepa.stages.train.model.variants import (
    Forecaster,
    ThinkerOnly,
    build_forecaster,
    build_token_pyramid,
    thinker_states,
)
from thinkjepa.stages.train.randomness import named_generator


class Forecast(NamedTuple):
    """Latents `(batch, step, patch, dim)`, joints `(batch, step, frame, joint, 3)`, metres, None without.

    `next_steps` are the latents of the step after each observed one `(batch, observed step, patch, dim)`,
    predicted at the observed step's position, where they were asked for.
    """

    latents: Tensor | None
    joints_m: Tensor | None
    next_steps: Tensor | None = None


class ForecastModel(nn.Module):
    """A forecaster, None in a variant without latents, a head, None without labels, and a head's reader."""

    def __init__(
        self, forecaster: Forecaster | None, head: TrajectoryHead | None, reader: StepReader | None = None
    ) -> None:
        super().__init__()
        self.forecaster = forecaster
        self.head = head
        self.reader = reader
        """The part that gives the head a state for each step. None where the head reads latents."""

    def forward(
        self,
        observed: Tensor | None,
        pooled: Tensor | None,
        poses: ObservedPoses | None,
        tokens: TokenBatch | None = None,
        guided: Tensor | None = None,
        *,
        with_next_steps: bool = False,
        num_steps: int | None = None,
    ) -> Forecast:
        """`observed` `(batch, step, patch, dim)`, `pooled` `(batch, level, stream, dim)` and `poses` are
        None where the model has no latents, no thinker or no head. `tokens` are read by a model guided by
        cross-attention, and needed by it. Where `guided` `(batch,)` is 0, the sample's forecast is
        that of the unguided predictor; None guides all. `with_next_steps` asks for `Forecast.next_steps`,
        `num_steps` for so many future steps, rolled out where they are more than a window.
        """
        next_steps, latents = None, None
        if self.forecaster is not None and with_next_steps:
            assert observed is not None, "models with a forecaster are always given observed latents"
            steps = self.forecaster.all_steps(observed, pooled, tokens, guided, num_steps=num_steps)
            next_steps, latents = steps[:, : observed.shape[1]], steps[:, observed.shape[1] :]
        elif self.forecaster is not None:
            latents = self.forecaster(observed, pooled, tokens, guided, num_steps=num_steps)
        if self.reader is None:
            return Forecast(latents, self.read_joints(latents, poses), next_steps)
        num_steps = num_steps if latents is None else latents.shape[1]
        states = self._states(thinker_states(pooled, tokens, guided), poses, num_steps)
        return Forecast(latents, self._joints(states, poses), next_steps)

    def read_joints(self, latents: Tensor | None, poses: ObservedPoses | None) -> Tensor | None:
        """Joints from any future latents. None where the model reads none off latents."""
        return None if self.reader is not None else self._joints(latents, poses)

    def set_thinker_statistics(self, pooled: StateStatistics, tokens: StateStatistics | None) -> None:
        """Standardize the thinker's pooled states and tokens, wherever they are read."""
        if self.forecaster is not None:
            self.forecaster.set_thinker_statistics(pooled, tokens)
        if self.reader is not None and self.reader.pyramid is not None and tokens is not None:
            self.reader.pyramid.set_statistics(pooled, tokens)

    def _states(
        self, thinker: ThinkerStates | None, poses: ObservedPoses | None, num_steps: int | None
    ) -> Tensor | None:
        """States `(batch, step, width)` of the reader. None without a head, as the reader is the head's."""
        if self.head is None or self.reader is None:
            return None
        assert poses is not None, "models with a head are always given observed poses"
        context = self.forecaster.context(thinker) if isinstance(self.forecaster, ThinkerOnly) else None
        states_BTW: Tensor = self.reader(self.head.ridge.inputs(poses), context, thinker)
        steps = self.head.ridge.steps(states_BTW.shape[1] if num_steps is None else num_steps)
        return states_BTW[:, steps]

    def _joints(self, read: Tensor | None, poses: ObservedPoses | None) -> Tensor | None:
        if self.head is None:
            return None
        assert poses is not None, "models with a head are always given observed poses"
        joints_m: Tensor = self.head(read, poses)
        return joints_m


def build_model(shape: ModelShape, *, seed: int) -> ForecastModel:
    """The model that `shape` names, its parameters drawn from `seed` (and nothing else).

    The forecaster's parameters are the same with and without a head, and the reader's with and without a
    thinker.
    """
    forecaster = build_forecaster(shape, seed=seed) if shape.has_latents else None
    if shape.head is None:
        return ForecastModel(forecaster, None)
    head, reader = TrajectoryHead(shape), None
    initialize(head, named_generator(seed, "head"))
    head.begin_at_start()
    if shape.head.reader_depth:
        reader = StepReader(shape)
        initialize(reader, named_generator(seed, "reader"))
        if shape.reading:
            reader.pyramid = build_token_pyramid(shape, reader.trunk.shape)
            initialize(reader.pyramid, named_generator(seed, "reader's pyramid"))
    return ForecastModel(forecaster, head, reader)
