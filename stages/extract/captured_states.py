"""What enters the chosen decoder layers while a model generates, copied to the CPU as it happens.

Shape letters: B prompts, L layers, S tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class CapturedStates:
    """Grows with every forward pass: the whole prompt first, then a token at a time."""

    def __init__(self, layers: Sequence[int], *, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._lengths = dict.fromkeys(layers, 0)
        self._places = {layer: place for place, layer in enumerate(layers)}
        self._room_BLSD = torch.empty(0)

    @property
    def states(self) -> Tensor:
        """`(B, L, S, D)` of the tokens that have gone through every layer."""
        return self._room_BLSD[:, :, : min(self._lengths.values())]

    def add(self, layer: int, states_BSD: Tensor) -> None:
        """A layer's states of the next tokens. Raises ValueError for more tokens than there can be."""
        rows, count, width = states_BSD.shape
        if not self._room_BLSD.numel():
            room = (rows, len(self._places), self._most_tokens, width)
            self._room_BLSD = torch.empty(room, dtype=states_BSD.dtype)
        begin = self._lengths[layer]
        if begin + count > self._most_tokens:
            raise ValueError(
                f"layer {layer} was given {begin + count} tokens, expected {self._most_tokens} at most"
            )
        self._room_BLSD[:, self._places[layer], begin : begin + count].copy_(states_BSD)
        self._lengths[layer] = begin + count


@contextmanager
def captured_states(
    decoder_layers: nn.ModuleList, layers: Sequence[int], *, most_tokens: int
) -> Iterator[CapturedStates]:
    """Record what enters the chosen layers; N layers have an N-th entry, what leaves the last."""
    captured = CapturedStates(layers, most_tokens=most_tokens)
    handles: list[RemovableHandle] = []

    def keep_input(layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured.add(layer, args[0] if args else kwargs["hidden_states"])

    def keep_output(layer: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        captured.add(layer, output[0] if isinstance(output, tuple) else output)

    try:
        for layer in layers:
            if layer < len(decoder_layers):
                hook = partial(keep_input, layer)
                handles.append(decoder_layers[layer].register_forward_pre_hook(hook, with_kwargs=True))
            else:
                handles.append(decoder_layers[-1].register_forward_hook(partial(keep_output, layer)))
        yield captured
    finally:
        for handle in handles:
            handle.remove()
