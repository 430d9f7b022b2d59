"""Places of the frame that a guided run reads the thinker's states from, of one clip.

    cross     attention of all queries over slots, mean over heads, queries and depths. A depth counts by the
              size of its gate, as what it reads is multiplied by it
    spatial   size of the modulation of each patch, mean over depths, with the gates in it

Nothing of the future is read: queries and states are those of the forecast itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thinkjepa.stages.data.framing import set_framing
from thinkjepa.stages.intervals import Floats
from thinkjepa.stages.train.data.features import Batch, Features
from thinkjepa.stages.train.data.on_grid import grid_part
from thinkjepa.stages.train.data.states import ClipArrays
from thinkjepa.stages.train.data.tokens import ThinkerStates
from thinkjepa.stages.train.model.forecast import ForecastModel
from thinkjepa.stages.train.model.token_guidance import CrossAttention, SpatialPyramid, TokenPyramid


@dataclass(frozen=True, slots=True)
class Attended:
    """Shares of what a run reads of the thinker's states of one clip, by place. All shares sum to 1."""

    kind: str
    """`cross` or `spatial`."""
    heights: Floats
    """Centers of the rows of places, shares of the frame's height from its top."""
    widths: Floats
    """Centers of the columns, shares of the frame's width from its left."""
    shares: Floats
    """`(row, column)`"""
    pairs_share: float
    """Of slots that are one moment of the whole frame."""
    text_share: float
    """Of text, and of tokens that are no slots."""
    gate: float
    """The largest gate. Where it is 0, guidance changes nothing."""


@torch.no_grad()
def attended(model: ForecastModel, features: Features, batch: Batch, clip_id: str) -> Attended | None:
    """The places that a model reads of a clip, whose batch of one is on the model's device.

    None for a model that reads no slots.
    """
    pyramid = _pyramid(model)
    if batch.tokens is None or not batch.tokens.slots:
        return None
    if isinstance(pyramid, SpatialPyramid):
        assert batch.pooled is not None, "a guided run reads pooled states"
        return _of_patches(pyramid, features, ThinkerStates(batch.pooled, batch.tokens), clip_id)
    if not isinstance(pyramid, TokenPyramid):
        return None
    weights_YN: list[Tensor] = []
    with _recorded(pyramid, weights_YN):
        model(batch.observed, batch.pooled, batch.poses, batch.tokens)
    gates_Y = pyramid.gates.abs()
    largest = float(gates_Y.max())
    by_depth_Y = gates_Y / gates_Y.sum() if largest else torch.full_like(gates_Y, 1 / len(gates_Y))
    shares_N = (by_depth_Y[:, None] * torch.stack(weights_YN)).sum(dim=0).double().cpu()
    return _of_slots(shares_N, batch.tokens.slots[0], _slot_positions(features, clip_id), gate=largest)


def _pyramid(model: ForecastModel) -> nn.Module | None:
    """The part that reads the thinker's states one by one: of the joints' reader, else of the forecaster."""
    if model.reader is not None and model.reader.pyramid is not None:
        return model.reader.pyramid
    return getattr(model.forecaster, "pyramid", None)


@contextmanager
def _recorded(pyramid: TokenPyramid, weights_YN: list[Tensor]) -> Iterator[None]:
    """While this lasts, each depth that runs adds its attention `(token,)`, of a batch of one."""

    def record(layer: CrossAttention, inputs: tuple[Any, ...]) -> None:
        (weights_HQN,) = layer.weights(*inputs)
        weights_YN.append(weights_HQN.mean(dim=(0, 1)))

    handles = [layer.register_forward_pre_hook(record) for layer in pyramid.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _slot_positions(features: Features, clip_id: str) -> Floats:
    """`slot_position` of a clip as stored: `(slot, 4)`."""
    assert features.thinker is not None, "slots are of a thinker's set"
    (named,) = features.source.read_from([clip_id])
    positions: Floats = (
        ClipArrays(features.cache, features.thinker).of(named)("slot_position").double().numpy()
    )
    return positions


def _of_slots(shares_N: Tensor, num_slots: int, positions: Floats, *, gate: float) -> Attended:
    """Attention by place; the segments of the history at one place are added."""
    of_slots, text_share = shares_N[:num_slots].numpy(), float(shares_N[num_slots:].sum())
    placed = np.isfinite(positions[:, 2:]).all(axis=1)
    heights, rows = np.unique(positions[placed, 2], return_inverse=True)
    widths, columns = np.unique(positions[placed, 3], return_inverse=True)
    shares = np.zeros((len(heights), len(widths)))
    np.add.at(shares, (rows, columns), of_slots[placed])
    return Attended("cross", heights, widths, shares, float(of_slots[~placed].sum()), text_share, gate)


def _of_patches(pyramid: SpatialPyramid, features: Features, states: ThinkerStates, clip_id: str) -> Attended:
    """Size of the modulation by patch. Even shares where it is zero everywhere."""
    assert features.thinker is not None, "a guided run has a thinker's set"
    films_YPFW = pyramid.guide(states).films[0]  # type: ignore[attr-defined]
    sizes_P = films_YPFW.flatten(2).norm(dim=-1).mean(dim=0).double().cpu()
    total = float(sizes_P.sum())
    shares_P = sizes_P / total if total else torch.full_like(sizes_P, 1 / len(sizes_P))
    grid, size_px = features.grid, features.cache.index(features.thinker.name).frame_px(clip_id)
    part = grid_part(set_framing(features.encoder.source), size_px)
    heights = part.top + part.height * (np.arange(grid.height) + 0.5) / grid.height
    widths = part.left + part.width * (np.arange(grid.width) + 0.5) / grid.width
    shares = shares_P.view(grid.height, grid.width).numpy()
    return Attended("spatial", heights, widths, shares, 0.0, 0.0, float(pyramid.gates.abs().max()))
