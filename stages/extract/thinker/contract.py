"""The thinker's records and arrays: timed frames in, hidden states of chosen layers out.

Shape letters: L layers, S tokens (prompt, then all generated but the last), D width.
Layer k is the residual stream that enters decoder layer k. 0 is the embeddings, N comes after the last layer
and before the final norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thinkjepa.cache import TOKEN_CHUNK, TOKEN_KINDS, ArraySpec, ClipFeatures

TOKEN_CAPACITY = 4096
"""Length of the token axis on disk. Tokens that a clip does not have take no space."""

TYPICAL_TOKENS = 1024
"""Decides how many clips share a shard. The paper's prompt has 1,166 tokens."""

KIND = {name: number for number, name in enumerate(TOKEN_KINDS, start=1)}


@dataclass(frozen=True, slots=True)
class TimedFrames:
    """Frames `(frame, 3, height, width)` uint8 of a clip, and their times in seconds."""

    frames: Tensor
    times_s: Sequence[float]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A model's inputs for one clip, on the CPU, with a batch axis of one.

    `source` keeps the frames where an engine processes them by itself.
    """

    inputs: Mapping[str, Tensor]
    source: TimedFrames | None = None


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """Hidden states of one clip. `token_ids` includes the last generated token, which has no state."""

    hidden_LSD: Tensor
    token_kind_S: Tensor
    token_ids: tuple[int, ...]
    prompt_token_count: int
    text: str

    def to_features(self, clip_id: str) -> ClipFeatures:
        """The arrays and columns that the cache stores of a clip."""
        return ClipFeatures(
            clip_id=clip_id,
            arrays={
                "tokens": self.hidden_LSD,
                "token_kind": self.token_kind_S,
                "pooled": pool_streams(self.hidden_LSD, prompt_token_count=self.prompt_token_count),
            },
            token_count=self.hidden_LSD.shape[1],
            prompt_token_count=self.prompt_token_count,
            token_ids=self.token_ids,
            generated_text=self.text,
        )


def thinker_arrays(layers: Sequence[int], *, width: int, dtype: str) -> tuple[ArraySpec, ...]:
    """The arrays of a thinker's feature set."""
    depth = len(layers)
    return (
        ArraySpec(
            name="tokens",
            dims=("layer", "token", "dim"),
            shape=(depth, TOKEN_CAPACITY, width),
            chunks=(1, TOKEN_CHUNK, width),
            dtype=dtype,
        ),
        ArraySpec(
            name="token_kind",
            dims=("token",),
            shape=(TOKEN_CAPACITY,),
            chunks=(TOKEN_CAPACITY,),
            dtype="uint8",
        ),
        ArraySpec(
            name="pooled",
            dims=("layer", "stream", "dim"),
            shape=(depth, 2, width),
            chunks=(depth, 2, width),
            dtype="float32",
        ),
    )


def pool_streams(hidden_LSD: Tensor, *, prompt_token_count: int) -> Tensor:
    """Means over prompt tokens and over generated tokens, `(layer, stream, dim)` float32.

    FiLM and AdaLN read only these means, through a linear projection, so pooling before it is exact.
    The generated stream is zero where there are no generated states.
    """
    values_LSD = hidden_LSD.float()
    prompt, generated = values_LSD[:, :prompt_token_count], values_LSD[:, prompt_token_count:]
    pooled_prompt = prompt.mean(dim=1)
    pooled_generated = generated.mean(dim=1) if generated.shape[1] else torch.zeros_like(pooled_prompt)
    return torch.stack([pooled_prompt, pooled_generated], dim=1)


def token_kinds(
    prompt_ids: Sequence[int],
    generated_ids: Sequence[int],
    *,
    visual_ids: frozenset[int],
    think_open: int | None,
    think_close: int | None,
) -> Tensor:
    """Kinds `(S,)` uint8 of the prompt and of all generated tokens but the last.

    Generated tokens between a thinking model's think tags are reasoning. A prompt that ends inside an
    open tag, as the template of such models does, begins there.
    """
    kinds = [KIND["visual"] if token in visual_ids else KIND["text"] for token in prompt_ids]
    tags = [token for token in prompt_ids if think_open is not None and token in (think_open, think_close)]
    thinking = bool(tags) and tags[-1] == think_open
    for token in generated_ids[:-1]:
        if token == think_open:
            thinking = True
        kinds.append(KIND["reasoning"] if thinking else KIND["generated"])
        if token == think_close:
            thinking = False
    return torch.tensor(kinds, dtype=torch.uint8)
