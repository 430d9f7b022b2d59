"""Learning rates over a run, and what decays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from thinkjepa.stages.train.fit.optimizer import Step, make_optimizer, rate_factor, set_rates
from thinkjepa.stages.train.model.config import HeadShape, ModelShape, reads_joints_directly
from thinkjepa.stages.train.model.forecast import ForecastModel, build_model
from thinkjepa.stages.train.model.reading import GuidanceShape
from thinkjepa.stages.train.settings import Schedule, TrainSettings

BuildShape = Callable[..., ModelShape]


def course(
    schedule: Schedule, *, part: str = "forecaster", total: int = 9, warmup: float = 0.0
) -> list[float]:
    return [
        rate_factor(schedule, part=part, step=step, total_steps=total, warmup=warmup) for step in range(total)
    ]


def test_the_papers_head_rate_falls_after_each_third_and_the_predictors_does_not() -> None:
    assert course("paper", part="head") == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01])
    assert course("paper") == [1.0] * 9


def test_cosine_falls_from_the_full_rate_towards_zero() -> None:
    factors = course("cosine", total=100)
    assert factors[0] == 1
    assert factors[50] == pytest.approx(0.5)
    assert 0 < factors[-1] < 1e-3
    assert factors == sorted(factors, reverse=True)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "paper"])
def test_warm_up_rises_in_equal_steps_to_the_full_rate(schedule: Schedule) -> None:
    factors = course(schedule, total=20, warmup=0.2)
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_groups_follow_their_own_course() -> None:
    model = ForecastModel(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    settings = TrainSettings(epochs=3, schedule="paper", learning_rate=1e-4, head_learning_rate=1e-3)
    optimizer = make_optimizer(model, settings)
    set_rates(optimizer, settings, Step(epoch=2, number=1, steps_per_epoch=7))
    rates = {group["part"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"forecaster": 1e-4, "head": pytest.approx(1e-4)}


@pytest.mark.parametrize("variant", ["thinkjepa", "jepa", "vlm", "poses"])
@pytest.mark.parametrize("kind", ["film", "cross"])
def test_linear_layers_decay_and_nothing_else(model_shape: BuildShape, variant: str, kind: str) -> None:
    """One step without a gradient but its zeros leaves all as it was, but for what decays."""
    directly = reads_joints_directly(variant, "poses")  # type: ignore[arg-type]
    head = HeadShape(("rightHand",), 2, anchor="none", width=16, reader_depth=2 if directly else 0)
    guidance = GuidanceShape(kind=kind, levels="mixture")  # type: ignore[arg-type]
    model = build_model(replace(model_shape(variant), guidance=guidance, head=head), seed=0)
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(model, TrainSettings(weight_decay=0.1)).step()
    decayed = {name for name, parameter in model.named_parameters() if parameter.ne(1).all()}
    untouched = {name for name, parameter in model.named_parameters() if parameter.eq(1).all()}
    layers = {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    assert decayed == layers
    assert untouched == dict(model.named_parameters()).keys() - layers
