"""Learning rates over a run."""

from __future__ import annotations

import pytest
import torch

from thinkjepa.stages.train.fit.optimizer import Step, make_optimizer, rate_factor, set_rates
from thinkjepa.stages.train.model.forecast import ForecastModel
from thinkjepa.stages.train.settings import Schedule, TrainSettings


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
