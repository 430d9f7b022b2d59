"""The thinker's states that a model reads one by one: slots and tokens, with their positions on the grid."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """States of some clips, packed to the front of the token axis, zeros after them. Slots come first."""

    states: Tensor
    """`(batch, level, token, dim)`, as long as the clip that has most, and at least one token long."""
    counts: tuple[int, ...]
    """Slots and tokens of each clip, maybe 0."""
    slots: tuple[int, ...] = ()
    """Slots of each clip, among its `counts`. Empty where no slots are read."""
    positions: Tensor | None = None
    """`(batch, token, 3)`: latent step, row and column on the predictor's grid. NaN: no such place.

    None where positions are not known."""

    def to(self, device: torch.device) -> "TokenBatch":
        """In float32 on `device`."""
        positions = None if self.positions is None else self.positions.to(device)
        return TokenBatch(self.states.to(device).float(), self.counts, self.slots, positions)

    def before(self, steps: int) -> "TokenBatch":
        """The same states, as far back as they are from a split that is `steps` latent steps later."""
        if self.positions is None:
            return self
        shift = torch.tensor([float(steps), 0.0, 0.0], device=self.positions.device)
        return replace(self, positions=self.positions - shift)

    def is_slot(self) -> Tensor:
        """True for each state that is a slot, `(batch, token)`."""
        numbers = torch.arange(self.states.shape[2], device=self.states.device)
        slots = torch.tensor(self.slots or (0,) * len(self.counts), device=self.states.device)
        return numbers < slots[:, None]


@dataclass(frozen=True, slots=True)
class ThinkerStates:
    """The thinker's states of a batch."""

    pooled: Tensor
    """`(batch, level, stream, dim)`"""
    tokens: TokenBatch | None = None
    """Those that are read one by one."""
    guided: Tensor | None = None
    """`(batch,)`: a sample where it is 0 is forecast without the thinker. None guides all."""

    def before(self, steps: int) -> "ThinkerStates":
        """The same states, seen from a split that is `steps` latent steps later."""
        return self if self.tokens is None else replace(self, tokens=self.tokens.before(steps))


@dataclass(frozen=True, slots=True)
class ClipTokens:
    """Slots of a clip, then its tokens, as they are read one by one."""

    states: Tensor
    """`(level, token, dim)`"""
    slots: int | None = None
    """Slots among them. None where no slots are read."""
    positions: Tensor | None = None
    """`(token, 3)`, as in `TokenBatch`."""


def of_kinds(states_LSD: Tensor, kind_S: Tensor, kinds: Sequence[int]) -> Tensor:
    """A clip's tokens of these kinds (values of `token_kind`), in their order."""
    return states_LSD[:, is_kind(kind_S, kinds)]


def is_kind(kind_S: Tensor, kinds: Sequence[int]) -> Tensor:
    """True for each token of these kinds."""
    return torch.isin(kind_S, torch.tensor(list(kinds), dtype=kind_S.dtype))


def packed(clips: Sequence[ClipTokens]) -> TokenBatch:
    """A batch of clips."""
    longest = max(1, *(clip.states.shape[1] for clip in clips))
    levels, _, dim = clips[0].states.shape
    packed_BLSD = torch.zeros(len(clips), levels, longest, dim, dtype=clips[0].states.dtype)
    known = [clip.positions for clip in clips if clip.positions is not None]
    positions = torch.zeros(len(clips), longest, 3) if known else None
    for index, clip in enumerate(clips):
        count = clip.states.shape[1]
        packed_BLSD[index, :, :count] = clip.states
        if positions is not None:
            assert clip.positions is not None, "positions are known of all clips or of none"
            positions[index, :count] = clip.positions
    return TokenBatch(
        packed_BLSD,
        tuple(clip.states.shape[1] for clip in clips),
        tuple(clip.slots for clip in clips if clip.slots is not None),
        positions,
    )
