"""States that the hooks keep of a generation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from thinkjepa.stages.extract.thinker.hooks import CapturedStates, captured_states

LAYERS = (0, 2, 3)
WIDTH = 4


class Doubling(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.mul_(2)  # in place: what was captured must not follow


def test_steps_are_joined_and_later_changes_do_not_reach_them() -> None:
    layers = nn.ModuleList(Doubling() for _ in range(3))
    steps = [torch.randn(2, 5, WIDTH), torch.randn(2, 1, WIDTH), torch.randn(2, 1, WIDTH)]
    expected = torch.cat(steps, dim=1)
    with captured_states(layers, LAYERS, most_tokens=20) as captured:
        for step in steps:
            states = step
            for number, layer in enumerate(layers):
                states = layer(states) if number else layer(hidden_states=states)
    assert captured.states.shape == (2, len(LAYERS), 7, WIDTH)
    for place, layer_id in enumerate(LAYERS):
        assert torch.equal(captured.states[:, place], expected * 2**layer_id)
    layers[0](torch.randn(2, 9, WIDTH))
    assert captured.states.shape[2] == 7, "the hooks are gone"


def test_more_tokens_than_there_can_be_are_refused() -> None:
    captured = CapturedStates((0,), most_tokens=3)
    captured.add(0, torch.zeros(1, 3, WIDTH))
    with pytest.raises(ValueError, match="layer 0 was given 4 tokens, expected 3 at most"):
        captured.add(0, torch.zeros(1, 1, WIDTH))
