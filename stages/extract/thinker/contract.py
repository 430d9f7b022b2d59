"""The thinker's contract: frames with their times and a prompt in, hidden states of chosen layers out.

Shape letters: L layers, S tokens (prompt, then all generated but the last), D width.
Layer k is the residual stream that enters decoder layer k: 0 the embeddings, N after the last layer,
before the final norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from thinkjepa.cache import TOKEN_CHUNK, TOKEN_KINDS, ArraySpec, ClipFeatures

TOKEN_CAPACITY = 4096
"""Length of the token axis on disk; what a clip does not use takes no space."""

TYPICAL_TOKENS = 1024
"""For choosing how many clips share a shard: the paper's prompt has 1,166 tokens."""

KIND = {name: number for number, name in enumerate(TOKEN_KINDS, start=1)}


@dataclass(frozen=True, slots=True)
class Scene:
    """What the thinker sees of a clip: frames `(frame, 3, height, width)` uint8, their times in seconds."""

    frames: Tensor
    times_s: Sequence[float]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A scene as a model takes it: its inputs on the CPU, with a batch axis of one.

    `scene` stays only where an engine prepares by itself what the model sees.
    """

    inputs: Mapping[str, Tensor]
    scene: Scene | None = None


@dataclass(frozen=True, slots=True)
class Thought:
    """What the thinker thinks of a clip. `token_ids` holds the last generated token too: it has no state."""

    hidden_LSD: Tensor
    token_kind_S: Tensor
    token_ids: tuple[int, ...]
    prompt_token_count: int
    text: str


class Thinker(Protocol):
    """A frozen vision-language model."""

    @property
    def layers(self) -> tuple[int, ...]: ...

    @property
    def width(self) -> int: ...

    @property
    def origin(self) -> Mapping[str, Any]:
        """What determines the states, without the sampling of frames."""
        ...

    @property
    def source(self) -> Mapping[str, Any]:
        """What helps a person: model name, revision, versions, device."""
        ...

    def prepare(self, scene: Scene) -> Prompt:
        """What the model takes of a scene. May run in another thread, while the model works."""
        ...

    def answer(self, prompts: Sequence[Prompt], *, batch_size: int = 1) -> list[Thought]:
        """One thought per prompt, on the CPU; no prompt's states depend on its neighbours."""
        ...


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


def thought_features(clip_id: str, thought: Thought) -> ClipFeatures:
    """A thought as it is stored."""
    return ClipFeatures(
        clip_id=clip_id,
        arrays={
            "tokens": thought.hidden_LSD,
            "token_kind": thought.token_kind_S,
            "pooled": pool_streams(thought.hidden_LSD, prompt_token_count=thought.prompt_token_count),
        },
        token_count=thought.hidden_LSD.shape[1],
        prompt_token_count=thought.prompt_token_count,
        token_ids=thought.token_ids,
        generated_text=thought.text,
    )


def pool_streams(hidden_LSD: Tensor, *, prompt_token_count: int) -> Tensor:
    """Means over prompt tokens and over generated tokens, `(layer, stream, dim)` float32.

    FiLM and AdaLN read only these means through a linear projection, so that pooling before it is exact.
    Without generated states that stream is zero.
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

    Generated tokens between a thinking model's think tags are reasoning; a prompt that ends inside an
    open tag (the template of such models) begins there.
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
