"""The thinker's states of a batch: pooled means and, where a model reads them one by one, tokens.

Shape letters: B batch, L levels, S tokens, D thinker dim.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thinkjepa.cache import BatchBuffers, FeatureCache


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Chosen tokens of some clips, packed to the front of the token axis; what lies behind is zero."""

    states: Tensor
    """`(batch, level, token, dim)`, as long as the clip that has most."""
    counts: tuple[int, ...]
    """Tokens of each clip, maybe 0."""

    def to(self, device: torch.device) -> "TokenBatch":
        """In float32 on `device`."""
        return TokenBatch(self.states.to(device).float(), self.counts)


@dataclass(frozen=True, slots=True)
class ThinkerStates:
    """What guides a batch."""

    pooled: Tensor
    """`(batch, level, stream, dim)`"""
    tokens: TokenBatch | None = None
    """For cross-attention."""
    guided: Tensor | None = None
    """`(batch,)`: a sample where it is 0 is forecast as if it had no thinker; None guides all."""


def read_tokens(
    cache: FeatureCache, set_name: str, clip_ids: Sequence[str], *, kinds: Sequence[int]
) -> TokenBatch:
    """The tokens of these kinds (values of `token_kind`), in the clips' and the tokens' order, on the CPU."""
    buffers, arrays = BatchBuffers(pinned=False), [(set_name, "tokens"), (set_name, "token_kind")]

    def chosen(clip_id: str) -> Tensor:
        """Clip by clip, as the tokens of other kinds would take several times the batch's memory."""
        read = cache.read_many([clip_id], arrays, out=buffers).arrays
        return of_kinds(read[set_name, "tokens"][0], read[set_name, "token_kind"][0], kinds)

    return packed(chosen(clip_id) for clip_id in clip_ids)


def of_kinds(states_LSD: Tensor, kind_S: Tensor, kinds: Sequence[int]) -> Tensor:
    """A clip's tokens of these kinds (values of `token_kind`), in their order."""
    keep_S = torch.isin(kind_S, torch.tensor(list(kinds), dtype=kind_S.dtype))
    return states_LSD[:, keep_S]


def packed(clips: Iterable[Tensor]) -> TokenBatch:
    """A batch of clips' tokens `(level, token, dim)`."""
    chosen = list(clips)
    longest = max(states.shape[1] for states in chosen)
    levels, _, dim = chosen[0].shape
    packed_BLSD = torch.zeros(len(chosen), levels, longest, dim, dtype=chosen[0].dtype)
    for place, states_LSD in enumerate(chosen):
        packed_BLSD[place, :, : states_LSD.shape[1]] = states_LSD
    return TokenBatch(packed_BLSD, tuple(states.shape[1] for states in chosen))
