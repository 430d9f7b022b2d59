"""Gradients reach every parameter of every variant, behind shut gates in time, and no target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from poses import still_poses

from thinkjepa.stages.train.data.features import Batch
from thinkjepa.stages.train.data.poses import TrajectoryBatch
from thinkjepa.stages.train.data.tokens import TokenBatch
from thinkjepa.stages.train.fit.losses import per_sample_losses
from thinkjepa.stages.train.fit.optimizer import make_optimizer
from thinkjepa.stages.train.model.config import (
    WITHOUT_LATENTS,
    WITHOUT_THINKER,
    HeadShape,
    ModelShape,
)
from thinkjepa.stages.train.model.forecast import ForecastModel, build_model
from thinkjepa.stages.train.model.reading import GuidanceShape
from thinkjepa.stages.train.model.trunk import MLP, MLP_RATIO, initialize
from thinkjepa.stages.train.model.variants import ThinkJepa
from thinkjepa.stages.train.randomness import named_generator
from thinkjepa.stages.train.settings import TrainSettings

BuildShape = Callable[..., ModelShape]
KINDS = ("film", "adaln", "cross", "spatial")
COUNTS = (5, 2, 7)
HEAD = HeadShape(joints=("rightHand", "leftHand"), frames_per_step=2, anchor="last_pose", width=16)
DIRECT = replace(HEAD, reader_depth=2)
"""A head whose joints are read off poses and states, in `vlm` and `poses`."""
SETTINGS = TrainSettings(anchor="last_pose", next_step_weight=0.5)
UNSEEN_BY_SOFTMAX = ("key.bias",)
"""A bias of the keys shifts all of a query's scores alike."""

GUIDED = [
    GuidanceShape(kind=kind, levels=levels, use_levels=use, use_streams=streams)  # type: ignore[arg-type]
    for kind, levels, use, streams in product(
        KINDS, ("fixed", "mixture"), ("all", "last", "middle"), ("both", "prompt", "generated")
    )
]
VARIANTS = [("thinkjepa", guidance) for guidance in GUIDED]
VARIANTS += [("jepa", GuidanceShape()), ("vlm", GuidanceShape())]
VARIANTS += [("vlm", GuidanceShape(use_levels="last", use_streams="generated"))]
VARIANTS += [("vlm", GuidanceShape(kind="cross")), ("poses", GuidanceShape())]


def named(value: object) -> str:
    if isinstance(value, GuidanceShape):
        return f"{value.kind}-{value.levels}-{value.use_levels}-{value.use_streams}"
    return str(value)


def clips(variant: str) -> Batch:
    """Three clips whose features and targets would show a gradient."""
    generator = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    states = drawn(3, 3, max(COUNTS), 10)
    positions = drawn(3, max(COUNTS), 3) - 2.0
    trajectory = TrajectoryBatch(
        poses=still_poses(drawn(3, 2, 3)),
        future_m=drawn(3, 2, 2, 2, 3).requires_grad_(),
        future_confidence=torch.ones(3, 2, 2, 2),
    )
    return Batch(
        observed=None if variant in WITHOUT_LATENTS else drawn(3, 3, 6, 8).requires_grad_(),
        future=None if variant in WITHOUT_LATENTS else drawn(3, 2, 6, 8).requires_grad_(),
        pooled=None if variant in WITHOUT_THINKER else drawn(3, 3, 2, 10),
        trajectory=trajectory,
        tokens=TokenBatch(states, COUNTS, slots=COUNTS, positions=positions),
    )


def build(
    model_shape: BuildShape, variant: str, guidance: GuidanceShape, *, gate: float | None
) -> ForecastModel:
    """A model with a head and four blocks, so that every level guides one; None leaves gates as built.

    The head's output layers are drawn: they begin at zero, behind which no gradient gets.
    """
    head = DIRECT if variant in ("vlm", "poses") else HEAD
    shape = replace(model_shape(variant, depth=4), guidance=guidance, head=head)
    model = build_model(shape, seed=1)
    assert model.head is not None
    initialize(model.head, named_generator(1, "head"))
    for name, parameter in model.named_parameters():
        if name.endswith("gates") and gate is not None:
            torch.nn.init.constant_(parameter, gate)
    return model


def loss(
    model: ForecastModel, batch: Batch, variant: str, settings: TrainSettings = SETTINGS
) -> torch.Tensor:
    forecast = model(
        batch.observed,
        batch.pooled,
        batch.poses,
        batch.tokens,
        with_next_steps=replace(settings, variant=variant).predicts_next_steps,  # type: ignore[arg-type]
    )
    return per_sample_losses(forecast, batch, replace(settings, variant=variant))[:, 0].mean()  # type: ignore[arg-type]


def without_gradient(model: ForecastModel) -> list[str]:
    return [
        name
        for name, parameter in model.named_parameters()
        if not name.endswith(UNSEEN_BY_SOFTMAX) and (parameter.grad is None or not parameter.grad.any())
    ]


@pytest.mark.parametrize(("variant", "guidance"), VARIANTS, ids=named)
def test_open_gates_let_gradients_reach_every_parameter(
    model_shape: BuildShape, variant: str, guidance: GuidanceShape
) -> None:
    model, batch = build(model_shape, variant, guidance, gate=0.5), clips(variant)
    loss(model, batch, variant).backward()
    assert without_gradient(model) == []


@pytest.mark.parametrize("guidance", GUIDED[:: len(GUIDED) // 12], ids=named)
def test_gates_start_at_zero_and_the_first_step_opens_the_way(
    model_shape: BuildShape, guidance: GuidanceShape
) -> None:
    model, batch = build(model_shape, "thinkjepa", guidance, gate=None), clips("thinkjepa")
    optimizer = make_optimizer(model, SETTINGS)
    assert isinstance(model.forecaster, ThinkJepa)
    assert not model.forecaster.pyramid.gates.any()
    loss(model, batch, "thinkjepa").backward()
    assert model.forecaster.pyramid.gates.grad is not None
    assert model.forecaster.pyramid.gates.grad.ne(0).all(), "at step one gradients reach each gate"
    behind = {name for name, _ in model.named_parameters() if "pyramid" in name and "gates" not in name}
    behind -= {name for name in behind if name.endswith(UNSEEN_BY_SOFTMAX)}
    assert set(without_gradient(model)) == behind, "and all else but what lies behind the gates"
    optimizer.step()
    optimizer.zero_grad()
    loss(model, batch, "thinkjepa").backward()
    assert without_gradient(model) == [], "at step two they reach everything"


@pytest.mark.parametrize("latent_loss", ["mse", "l1", "smooth_l1"])
@pytest.mark.parametrize("variant", ["thinkjepa", "jepa", "vlm", "poses"])
def test_no_gradient_reaches_a_target(model_shape: BuildShape, variant: str, latent_loss: str) -> None:
    model, batch = build(model_shape, variant, GuidanceShape(), gate=0.5), clips(variant)
    settings = replace(SETTINGS, latent_loss=latent_loss)  # type: ignore[arg-type]
    loss(model, batch, variant, settings).backward()
    assert batch.trajectory is not None
    assert batch.trajectory.future_m.grad is None
    if variant not in WITHOUT_LATENTS:
        assert batch.future.grad is None
        sees_latents = variant != "vlm"
        assert (batch.observed.grad is not None) == sees_latents, "the control: what is read would show one"


def test_the_next_step_loss_sends_no_gradient_into_the_latents_it_compares_with(
    model_shape: BuildShape,
) -> None:
    """The observed latents are both read and, one step later, targets: the latter get no gradient."""
    model, batch = build(model_shape, "jepa", GuidanceShape(), gate=0.5), clips("jepa")
    apart = replace(batch, observed=batch.observed.detach().clone().requires_grad_())
    forecast = model(batch.observed, None, batch.poses, with_next_steps=True)
    per_sample_losses(forecast, apart, replace(SETTINGS, variant="jepa"))[:, 0].mean().backward()
    assert apart.observed.grad is None
    assert batch.observed.grad is not None


def test_the_gelu_is_computed_again_to_the_same_bits_and_not_kept() -> None:
    width, tokens = 12, 32
    mlp = MLP(width)
    initialize(mlp, named_generator(0, "mlp"))
    x = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kept: list[int] = []
    weights = {parameter.data_ptr() for parameter in mlp.parameters()}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if value.data_ptr() not in weights:
            kept.append(value.numel())
        return value

    def gradients(forward: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            output = forward(x)
        return list(torch.autograd.grad(output.square().sum(), [x, *mlp.parameters()]))

    plain = gradients(lambda x: mlp.fc2(F.gelu(mlp.fc1(x))))
    assert sum(kept) == (1 + 2 * MLP_RATIO) * tokens * width
    ours = gradients(mlp)
    assert sum(kept) <= (1 + MLP_RATIO) * tokens * width
    assert all(torch.equal(*pair) for pair in zip(ours, plain, strict=True))
