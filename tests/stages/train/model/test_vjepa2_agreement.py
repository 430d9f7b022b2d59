"""Our predictor against transformers' `VJEPA2Predictor`: grids, heads, depths, random inputs and masks."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from transformers import VJEPA2Config, VJEPA2Model

from thinkjepa.stages.train.init_from import copy_vjepa2_predictor
from thinkjepa.stages.train.model.attention import bidirectional_spans, grid_positions, rotation_at
from thinkjepa.stages.train.model.config import LatentGrid, TrunkShape
from thinkjepa.stages.train.model.variants import Predictor

PATCH, DIM, BATCH = 8, 16, 2
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


class Case(NamedTuple):
    """`side` x `side` patches at `steps` latent steps; `depth` blocks of `heads` heads of `head_dim`."""

    side: int
    steps: int
    heads: int
    head_dim: int
    depth: int

    @property
    def grid(self) -> LatentGrid:
        observed = (self.steps + 1) // 2
        return LatentGrid(observed, self.steps - observed, self.side, self.side, DIM)


CASES = [
    Case(side=4, steps=5, heads=4, head_dim=12, depth=3),
    Case(side=3, steps=4, heads=1, head_dim=6, depth=1),
    Case(side=5, steps=2, heads=3, head_dim=20, depth=5),
    Case(side=2, steps=7, heads=12, head_dim=32, depth=2),  # the published heads: 30 of 32 dims are rotated
]


def reference(case: Case) -> VJEPA2Model:
    """An untrained V-JEPA 2; its ten mask tokens, norms and biases differ from each other and from zero."""
    config = VJEPA2Config(
        patch_size=PATCH,
        crop_size=case.side * PATCH,
        frames_per_clip=2 * case.steps,
        tubelet_size=2,
        hidden_size=DIM,
        num_attention_heads=2,
        num_hidden_layers=1,
        pred_hidden_size=case.heads * case.head_dim,
        pred_num_attention_heads=case.heads,
        pred_num_hidden_layers=case.depth,
        pred_num_mask_tokens=10,
    )
    torch.manual_seed(0)
    model = VJEPA2Model(config).eval()
    with torch.no_grad():
        for name, parameter in model.predictor.named_parameters():
            size = 1.0 if "mask_tokens" in name else 0.5 / parameter.shape[-1] ** 0.5
            parameter.add_(size * torch.randn_like(parameter))
    return model


def ours(case: Case, model: VJEPA2Model, *, heads: int | None = None) -> Predictor:
    """The same weights in our predictor; `heads` other than the checkpoint's are forced on it."""
    width, config = case.heads * case.head_dim, model.config.to_dict()
    trunk = TrunkShape(case.depth, width, heads or case.heads, attention="bidirectional")
    predictor = Predictor(case.grid, trunk)
    config["pred_num_attention_heads"] = trunk.heads
    copy_vjepa2_predictor(predictor, weights=model.state_dict(), config=config)
    return predictor.eval()


def random_masks(num_places: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents at all places; places of context and of targets, other ones for each clip, in any order."""
    generator = torch.Generator().manual_seed(seed)
    latents = 3 * torch.randn(BATCH, num_places, DIM, generator=generator)
    order = torch.stack([torch.randperm(num_places, generator=generator) for _ in range(BATCH)])
    num_context = int(torch.randint(1, num_places - 1, (), generator=generator))
    num_targets = int(torch.randint(1, num_places - num_context + 1, (), generator=generator))
    return latents, order[:, :num_context], order[:, num_context : num_context + num_targets]


def predicted(
    predictor: Predictor, case: Case, latents: torch.Tensor, context: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """One clip by our modules, tokens in the order of their places, as transformers sorts them."""
    ids, places = torch.cat((context, targets)).sort()
    tokens = torch.cat((predictor.embed(latents[context]), predictor.mask_token.expand(len(targets), -1)))
    everywhere = grid_positions(
        first_step=0, num_steps=case.steps, height=case.side, width=case.side, device=ids.device
    )
    states = predictor.trunk(
        tokens[places].unsqueeze(0),
        rotation_at(everywhere[ids], head_dim=predictor.trunk.shape.head_dim),
        bidirectional_spans(len(ids)),
    )[0]
    outputs = torch.empty_like(states)
    outputs[places] = states
    return predictor.proj(outputs[len(context) :])


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agreement_on_random_inputs_and_masks(case: Case) -> None:
    model = reference(case)
    predictor = ours(case, model)
    for seed in range(4):
        latents, context, targets = random_masks(case.steps * case.side**2, seed)
        expected = model.predictor(latents, [context], [targets]).last_hidden_state
        assert expected.std() > 0.05
        for clip in range(BATCH):
            output = predicted(predictor, case, latents[clip], context[clip], targets[clip])
            torch.testing.assert_close(output, expected[clip], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agreement_where_the_past_is_context_and_the_future_is_masked(case: Case) -> None:
    model, grid = reference(case), case.grid
    observed = torch.randn(BATCH, grid.observed_steps, grid.tokens_per_step, DIM)
    split = grid.observed_steps * grid.tokens_per_step
    ids = torch.arange(case.steps * grid.tokens_per_step).expand(BATCH, -1)
    # transformers gathers the context from all latents; what stands at future places is never looked at
    never = torch.full((BATCH, ids.shape[1] - split, DIM), 1e9)
    latents = torch.cat((observed.flatten(1, 2), never), dim=1)
    expected = model.predictor(latents, [ids[:, :split]], [ids[:, split:]]).last_hidden_state
    torch.testing.assert_close(ours(case, model)(observed).flatten(1, 2), expected, **TOLERANCE)


@torch.no_grad()
def test_another_head_count_loads_and_computes_something_else() -> None:
    """The reason to refuse it, and proof that the comparisons above would see it."""
    case = CASES[0]
    model = reference(case)
    latents, context, targets = random_masks(case.steps * case.side**2, seed=0)
    expected = model.predictor(latents, [context], [targets]).last_hidden_state[0]
    wrong = predicted(ours(case, model, heads=2), case, latents[0], context[0], targets[0])
    assert (wrong - expected).abs().max() > 1e-2


@torch.no_grad()
def test_the_mask_token_is_the_one_that_the_published_predictor_uses() -> None:
    case = CASES[0]
    model = reference(case)
    tokens = model.predictor.embeddings.mask_tokens.flatten(1)
    assert torch.equal(ours(case, model).mask_token[0], tokens[1])
    assert (torch.pdist(tokens) > 1.0).all()
