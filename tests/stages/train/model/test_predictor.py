"""The predictor takes V-JEPA 2's weights, and nothing in it sees the future."""

from __future__ import annotations

import pytest
import torch
from transformers import VJEPA2Config, VJEPA2Model

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.init_from import copy_vjepa2_predictor
from thinkjepa.stages.train.model.config import AttentionPattern, LatentGrid, TrunkShape
from thinkjepa.stages.train.model.trunk import initialize
from thinkjepa.stages.train.model.variants import Predictor
from thinkjepa.stages.train.randomness import named_generator

GRID = LatentGrid(observed_steps=3, future_steps=2, height=4, width=4, dim=16)


@pytest.fixture(scope="module")
def reference() -> VJEPA2Model:
    """A tiny untrained V-JEPA 2 whose ten mask tokens and norms differ from each other and from zero."""
    config = VJEPA2Config(
        patch_size=8,
        crop_size=32,
        frames_per_clip=10,
        tubelet_size=2,
        hidden_size=GRID.dim,
        num_attention_heads=2,
        num_hidden_layers=1,
        pred_hidden_size=48,
        pred_num_attention_heads=4,
        pred_num_hidden_layers=3,
        pred_num_mask_tokens=10,
    )
    torch.manual_seed(0)
    model = VJEPA2Model(config).eval()
    with torch.no_grad():
        for parameter in model.predictor.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def build(*, heads: int = 4, attention: AttentionPattern = "bidirectional", depth: int = 3) -> Predictor:
    predictor = Predictor(GRID, TrunkShape(depth=depth, width=48, heads=heads, attention=attention))
    initialize(predictor, named_generator(0, "predictor"))
    return predictor.eval()


def observed_latents(batch: int = 2) -> torch.Tensor:
    shape = (batch, GRID.observed_steps, GRID.tokens_per_step, GRID.dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_predictor_weights_alone_load_as_well(reference: VJEPA2Model) -> None:
    whole, alone = build(), build()
    config = reference.config.to_dict()
    copy_vjepa2_predictor(whole, weights=reference.state_dict(), config=config)
    copy_vjepa2_predictor(alone, weights=reference.predictor.state_dict(), config=config)
    assert torch.equal(whole(observed_latents()), alone(observed_latents()))


@pytest.mark.parametrize("field", ["pred_num_attention_heads", "pred_num_hidden_layers"])
def test_another_head_count_or_depth_is_refused(reference: VJEPA2Model, field: str) -> None:
    predictor = build(heads=2) if "heads" in field else build(depth=2)
    with pytest.raises(StageError, match=field):
        copy_vjepa2_predictor(predictor, weights=reference.state_dict(), config=reference.config.to_dict())


def test_config_without_head_count_is_refused(reference: VJEPA2Model) -> None:
    config = reference.config.to_dict()
    del config["pred_num_attention_heads"]
    with pytest.raises(StageError, match="pred_num_attention_heads"):
        copy_vjepa2_predictor(build(), weights=reference.state_dict(), config=config)


def test_checkpoint_that_lacks_a_weight_is_refused(reference: VJEPA2Model) -> None:
    weights = {k: v for k, v in reference.state_dict().items() if "layer.1.attention.query.bias" not in k}
    with pytest.raises(StageError, match=r"trunk\.layer\.1\.attention\.query\.bias"):
        copy_vjepa2_predictor(build(), weights=weights, config=reference.config.to_dict())


@torch.no_grad()
@pytest.mark.parametrize("changed", range(GRID.observed_steps))
def test_an_observed_step_reaches_no_earlier_position(changed: int) -> None:
    predictor = build(attention="frame_causal")
    observed = observed_latents()
    altered = observed.clone()
    altered[:, changed] += 1.0
    delta = (predictor.hidden_states(altered) - predictor.hidden_states(observed)).abs().amax(dim=(0, 2, 3))
    assert delta[:changed].tolist() == [0.0] * changed
    assert (delta[changed:] > 1e-4).all()


@torch.no_grad()
@pytest.mark.parametrize("changed", range(GRID.observed_steps + GRID.future_steps))
def test_teacher_forced_a_step_reaches_no_prediction_before_it(changed: int) -> None:
    """The same trunk over true latents at every step: what is fed at step t moves outputs from t on only."""
    steps = GRID.observed_steps + GRID.future_steps
    teacher = LatentGrid(observed_steps=steps, future_steps=0, height=4, width=4, dim=16)
    latents = torch.randn(2, steps, 16, 16, generator=torch.Generator().manual_seed(2))
    altered = latents.clone()
    altered[:, changed] += 1.0
    for attention, before in (("frame_causal", 0.0), ("bidirectional", None)):
        predictor = build(attention=attention)  # type: ignore[arg-type]
        predictor.grid = teacher
        delta = (predictor.all_steps(altered) - predictor.all_steps(latents)).abs().amax(dim=(0, 2, 3))
        assert (delta[changed:] > 1e-4).all()
        if before is not None:
            assert delta[:changed].tolist() == [before] * changed
        else:
            assert (delta > 1e-4).all()


@torch.no_grad()
def test_bidirectional_attention_would_fail_the_causality_test() -> None:
    predictor = build()
    observed = observed_latents()
    altered = observed.clone()
    altered[:, 2] += 1.0
    delta = (predictor.hidden_states(altered) - predictor.hidden_states(observed)).abs().amax(dim=(0, 2, 3))
    assert (delta > 1e-4).all()


@torch.no_grad()
def test_a_shorter_horizon_predicts_the_same_steps() -> None:
    predictor = build(attention="frame_causal")
    longer = predictor(observed_latents())
    predictor.grid = LatentGrid(observed_steps=3, future_steps=1, height=4, width=4, dim=16)
    torch.testing.assert_close(predictor(observed_latents()), longer[:, :1])


@torch.no_grad()
def test_every_future_position_gets_an_output_of_its_own() -> None:
    outputs = build(attention="frame_causal")(observed_latents(1)).flatten(0, 2)
    assert len(torch.unique(outputs, dim=0)) == GRID.future_steps * GRID.tokens_per_step


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(StageError, match="width a multiple of the heads"):
        TrunkShape(depth=1, width=50, heads=4)


def test_heads_too_small_for_three_axes_are_refused() -> None:
    with pytest.raises(StageError, match="axes need 6"):
        TrunkShape(depth=1, width=16, heads=4)
