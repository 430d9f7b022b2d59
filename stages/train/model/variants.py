"""The forecasters of latents that one cache can train, called alike: `forecaster(observed, pooled, tokens)`.

    thinkjepa   the predictor, guided at every depth by the pyramid
    jepa        the predictor alone
    vlm         the thinker's features alone, pooled or one by one, without observed latents

Variant `poses` forecasts no latents and has none of them.

In the predictor, observed latents become context tokens and each future position a mask token, which the
trunk fills in. The grid is the encoder's own: observed steps are 0 .. T_o - 1, future steps follow.

Parameters of `thinkjepa` and `jepa` with the same seed start equal: each part draws from a stream of its own.
"""

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor, nn

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.data.statistics import StateStatistics
from thinkjepa.stages.train.data.tokens import ThinkerStates, TokenBatch
from thinkjepa.stages.train.model.attention import grid_positions, rotation_at
from thinkjepa.stages.train.model.config import (
    LatentGrid,
    ModelShape,
    ThinkerShape,
    TrunkShape,
)
from thinkjepa.stages.train.model.guidance import Pyramid, ThinkerProjection, only_streams
from thinkjepa.stages.train.model.reading import GuidanceShape
from thinkjepa.stages.train.model.token_guidance import SpatialPyramid, TokenPyramid
from thinkjepa.stages.train.model.trunk import Guidance, Trunk, initialize
from thinkjepa.stages.train.model.units import LatentUnits
from thinkjepa.stages.train.randomness import named_generator

AnyPyramid = Pyramid | TokenPyramid | SpatialPyramid


class Predictor(nn.Module):
    """Predicts `(batch, future step, patch, dim)` from `(batch, observed step, patch, dim)`."""

    def __init__(self, grid: LatentGrid, trunk: TrunkShape) -> None:
        super().__init__()
        self.grid = grid
        self.embed = nn.Linear(grid.dim, trunk.width)
        self.mask_token = nn.Parameter(torch.zeros(1, trunk.width))
        self.trunk = Trunk(trunk)
        self.proj = nn.Linear(trunk.width, grid.dim)

    def forward(self, observed: Tensor, *, guidance: Guidance | None = None) -> Tensor:
        """Future latents."""
        states_BTPW = self.hidden_states(observed, guidance=guidance)
        future: Tensor = self.proj(states_BTPW[:, self.grid.observed_steps :])
        return future

    def put_out_zeros(self) -> None:
        """Make every output zero. The output layer learns from there."""
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def all_steps(self, observed: Tensor, *, guidance: Guidance | None = None) -> Tensor:
        """Latents read off every position: `(batch, step, patch, dim)`.

        Observed positions come first and give the step after their own, future positions their own step.
        """
        latents: Tensor = self.proj(self.hidden_states(observed, guidance=guidance))
        return latents

    def hidden_states(self, observed: Tensor, *, guidance: Guidance | None = None) -> Tensor:
        """The trunk's output at every step, observed ones first: `(batch, step, patch, width)`."""
        grid = self.grid
        context_BNW = self.embed(observed.flatten(1, 2))
        num_masked = grid.future_steps * grid.tokens_per_step
        masked_BNW = self.mask_token.expand(len(context_BNW), num_masked, -1)
        num_steps = grid.observed_steps + grid.future_steps
        positions = grid_positions(
            first_step=0,
            num_steps=num_steps,
            height=grid.height,
            width=grid.width,
            device=context_BNW.device,
        )
        states_BNW: Tensor = self.trunk(
            torch.cat((context_BNW, masked_BNW), dim=1),
            rotation_at(positions, head_dim=self.trunk.shape.head_dim),
            self.trunk.spans(num_steps=num_steps, tokens_per_step=grid.tokens_per_step),
            guidance=guidance,
        )
        return states_BNW.view(len(states_BNW), num_steps, grid.tokens_per_step, -1)


class Forecaster(nn.Module):
    """Predicts future latents `(batch, future step, patch, dim)` from what is known at the split frame.

    `pooled` `(batch, level, stream, dim)` and `tokens` are the thinker's states, None where a variant reads
    none. A sample where `guided` `(batch,)` is 0 is forecast as if it had no thinker. Variants say what they
    make of the observed latents and these states. All latents are in the encoder's units.
    """

    def __init__(self, units: LatentUnits) -> None:
        super().__init__()
        self.units = units

    def forward(
        self,
        observed: Tensor,
        pooled: Tensor | None,
        tokens: TokenBatch | None = None,
        guided: Tensor | None = None,
        *,
        num_steps: int | None = None,
    ) -> Tensor:
        """Roll out `num_steps` future steps, window by window. None stands for one window."""
        thinker = thinker_states(pooled, tokens, guided)
        return self.rolled_on(observed, self.future_steps(observed, thinker), thinker, num_steps)

    def all_steps(
        self,
        observed: Tensor,
        pooled: Tensor | None,
        tokens: TokenBatch | None = None,
        guided: Tensor | None = None,
        *,
        num_steps: int | None = None,
    ) -> Tensor:
        """The step after each observed one, read off the observed position, before the future steps."""
        thinker = thinker_states(pooled, tokens, guided)
        steps = self.observed_and_future_steps(observed, thinker)
        next_steps, future = steps[:, : observed.shape[1]], steps[:, observed.shape[1] :]
        return torch.cat((next_steps, self.rolled_on(observed, future, thinker, num_steps)), dim=1)

    def rolled_on(
        self, observed: Tensor, future: Tensor, thinker: ThinkerStates | None, num_steps: int | None
    ) -> Tensor:
        """`num_steps` steps that begin with the predicted window `future`. None stands for that window.

        Predictions become context: the last steps of all, as many as were observed, are the input of the next
        window. The thinker's states stay those of the split frame, ever farther back in time.
        """
        num_steps = future.shape[1] if num_steps is None else num_steps
        while future.shape[1] < num_steps:
            context = torch.cat((observed, future), dim=1)[:, -observed.shape[1] :]
            earlier = None if thinker is None else thinker.before(future.shape[1])
            future = torch.cat((future, self.future_steps(context, earlier)), dim=1)
        return future[:, :num_steps]

    @abstractmethod
    def future_steps(self, observed: Tensor, thinker: ThinkerStates | None) -> Tensor:
        """One window of future latents `(batch, step, patch, dim)`."""

    def observed_and_future_steps(self, observed: Tensor, thinker: ThinkerStates | None) -> Tensor:
        """`Predictor.all_steps`. Raises StageError for a variant that reads no observed steps."""
        raise StageError("this variant has no positions of observed steps")

    def set_thinker_statistics(self, pooled: StateStatistics, tokens: StateStatistics | None) -> None:
        """Standardize the thinker's pooled states and tokens. A model without a thinker needs none."""


def thinker_states(
    pooled: Tensor | None, tokens: TokenBatch | None, guided: Tensor | None
) -> ThinkerStates | None:
    """The thinker's states of a batch. None of a model without a thinker."""
    return None if pooled is None else ThinkerStates(pooled, tokens, guided)


class Jepa(Forecaster):
    """The unguided predictor. Thinker states are ignored."""

    def __init__(self, predictor: Predictor, units: LatentUnits) -> None:
        super().__init__(units)
        self.predictor = predictor

    def future_steps(self, observed: Tensor, thinker: ThinkerStates | None) -> Tensor:
        outputs = self.predictor(self.units.entering(observed), guidance=self._guide(thinker))
        return self.units.leaving(outputs, observed[:, -1:])

    def observed_and_future_steps(self, observed: Tensor, thinker: ThinkerStates | None) -> Tensor:
        outputs = self.predictor.all_steps(self.units.entering(observed), guidance=self._guide(thinker))
        last = observed[:, -1:].expand(-1, outputs.shape[1] - observed.shape[1], -1, -1)
        return self.units.leaving(outputs, torch.cat((observed, last), dim=1))

    def _guide(self, thinker: ThinkerStates | None) -> Guidance | None:
        return None


class ThinkJepa(Jepa):
    """The predictor under the pyramid's guidance, each sample under its own."""

    def __init__(self, predictor: Predictor, units: LatentUnits, pyramid: AnyPyramid) -> None:
        super().__init__(predictor, units)
        self.pyramid = pyramid

    def _guide(self, thinker: ThinkerStates | None) -> Guidance:
        assert thinker is not None, "guided variants are always given pooled states"
        return self.pyramid.guide(thinker)

    def set_thinker_statistics(self, pooled: StateStatistics, tokens: StateStatistics | None) -> None:
        self.pyramid.set_statistics(pooled, tokens)


class ThinkerOnly(Forecaster):
    """Future latents from the thinker's states alone.

    Each level and stream of the pooled states is a context token. With a pyramid of tokens, slots or tokens
    are read at every depth as well. Queries carry learned position embeddings, since identical mask tokens
    over a context without positions would all give the same output. There is one for each step that training
    covers, over all of its windows: a step after the first window has a target of its own.
    """

    def __init__(
        self,
        grid: LatentGrid,
        windows: int,
        trunk: TrunkShape,
        thinker: ThinkerShape,
        guidance: GuidanceShape,
        units: LatentUnits,
    ) -> None:
        super().__init__(units)
        self.window_steps = grid.future_steps
        self.grid = replace(grid, future_steps=windows * grid.future_steps)
        self.guidance, self.streams = guidance, thinker.streams
        self.levels = guidance.used_levels(thinker.levels)
        self.projection = ThinkerProjection(thinker, width=trunk.width)
        self.context_embedding = nn.Parameter(
            torch.zeros(len(self.levels) * len(thinker.streams), trunk.width)
        )
        self.step_embedding = nn.Parameter(torch.zeros(self.grid.future_steps, trunk.width))
        self.patch_embedding = nn.Parameter(torch.zeros(grid.tokens_per_step, trunk.width))
        self.trunk = Trunk(trunk)
        self.proj = nn.Linear(trunk.width, grid.dim)
        self.pyramid: TokenPyramid | None = None
        """Reader of the tokens, where they are given."""

    def future_steps(self, observed: Tensor, thinker: ThinkerStates | None) -> Tensor:
        assert thinker is not None, "guided variants are always given pooled states"
        guidance = None if self.pyramid is None else self.pyramid.guide(thinker)
        context_BNW = self.context(thinker)
        queries_BNW = self._queries().to(context_BNW.dtype).expand(len(context_BNW), -1, -1)
        num_context, grid = context_BNW.shape[1], self.grid
        spans = self.trunk.spans(
            num_steps=grid.future_steps, tokens_per_step=grid.tokens_per_step, prefix_tokens=num_context
        )
        rotation = rotation_at(
            self._positions(num_context, context_BNW.device), head_dim=self.trunk.shape.head_dim
        )
        states_BNW = self.trunk(
            torch.cat((context_BNW, queries_BNW), dim=1), rotation, spans, guidance=guidance
        )
        outputs_BNW = self.proj(states_BNW[:, num_context:])
        outputs = outputs_BNW.view(len(outputs_BNW), grid.future_steps, grid.tokens_per_step, -1)
        return self.units.leaving(outputs, observed[:, -1:])

    def rolled_on(
        self, observed: Tensor, future: Tensor, thinker: ThinkerStates | None, num_steps: int | None
    ) -> Tensor:
        """Repeat the last step that training covered, since no prediction is an input."""
        num_steps = self.window_steps if num_steps is None else num_steps
        held = future[:, -1:].expand(-1, max(0, num_steps - future.shape[1]), -1, -1)
        return torch.cat((future, held), dim=1)[:, :num_steps]

    def context(self, thinker: ThinkerStates | None) -> Tensor:
        """The thinker's states as context tokens `(batch, token, width)`."""
        assert thinker is not None, "guided variants are always given pooled states"
        projected_BLSW = self.projection(
            only_streams(thinker.pooled, self.guidance.use_streams, self.streams)
        )
        context_BNW: Tensor = projected_BLSW[:, list(self.levels)].flatten(1, 2) + self.context_embedding
        return context_BNW

    def set_thinker_statistics(self, pooled: StateStatistics, tokens: StateStatistics | None) -> None:
        self.projection.set_statistics(pooled)
        if self.pyramid is not None and tokens is not None:
            self.pyramid.set_statistics(pooled, tokens)

    def _queries(self) -> Tensor:
        """One query per future step and patch, `(1, step * patch, width)`."""
        return (self.step_embedding[:, None] + self.patch_embedding[None]).flatten(0, 1).unsqueeze(0)

    def _positions(self, num_context: int, device: torch.device) -> Tensor:
        """Future positions as in the predictor. Context tokens are at the origin, which rotates nothing."""
        grid = self.grid
        queries = grid_positions(
            first_step=grid.observed_steps,
            num_steps=grid.future_steps,
            height=grid.height,
            width=grid.width,
            device=device,
        )
        return torch.cat((torch.zeros(num_context, queries.shape[1], device=device), queries))


def build_forecaster(shape: ModelShape, *, seed: int) -> Forecaster:
    """The variant that `shape` names, its parameters drawn from `seed` (and nothing else)."""
    units = LatentUnits(shape.grid, shape.target)
    if shape.variant == "vlm":
        only = ThinkerOnly(shape.grid, shape.windows, shape.trunk, _thinker(shape), shape.guidance, units)
        initialize(only, named_generator(seed, "thinker only"))
        if shape.reading:
            only.pyramid = build_token_pyramid(shape, shape.trunk)
            initialize(only.pyramid, named_generator(seed, "pyramid"))
        return only
    predictor = Predictor(shape.grid, shape.trunk)
    initialize(predictor, named_generator(seed, "predictor"))
    if shape.target.kind == "change":
        predictor.put_out_zeros()
    if shape.variant == "jepa":
        return Jepa(predictor, units)
    pyramid = build_pyramid(shape)
    initialize(pyramid, named_generator(seed, "pyramid"))
    return ThinkJepa(predictor, units, pyramid)


def build_pyramid(shape: ModelShape) -> AnyPyramid:
    """The pyramid of the kind that `shape` names, without drawn parameters."""
    trunk = shape.trunk
    if shape.guidance.kind == "cross":
        return build_token_pyramid(shape, trunk)
    if shape.guidance.kind == "spatial":
        return SpatialPyramid(
            _thinker(shape), shape.grid, trunk, fusion_width=shape.fusion_width, guidance=shape.guidance
        )
    return Pyramid(
        _thinker(shape),
        depth=trunk.depth,
        width=trunk.width,
        fusion_width=shape.fusion_width,
        guidance=shape.guidance,
    )


def build_token_pyramid(shape: ModelShape, trunk: TrunkShape) -> TokenPyramid:
    """The pyramid of tokens over the depths of `trunk`, without drawn parameters."""
    return TokenPyramid(_thinker(shape), trunk, shape.guidance)


def _thinker(shape: ModelShape) -> ThinkerShape:
    if shape.thinker is None:
        raise StageError(
            f"variant {shape.variant!r} needs a thinker's features, the cache gave none; extract them, or "
            "train --variant jepa"
        )
    return shape.thinker
