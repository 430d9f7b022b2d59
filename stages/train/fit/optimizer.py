"""AdamW for a forecast model, and its learning rates at each step."""

from dataclasses import dataclass

import torch

from thinkjepa.stages.train.model.forecast import ForecastModel
from thinkjepa.stages.train.settings import OptimiserSettings, rate_factor

GATES = ("gates", "mixture")
"""How names end of the few parameters that open the guidance or choose its levels: rates of their own."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A step of training; epoch and step count from 1."""

    epoch: int
    step: int
    steps_per_epoch: int


def make_optimizer(model: ForecastModel, settings: OptimiserSettings) -> torch.optim.Optimizer:
    """AdamW: weight decay on matrices only, rates of their own for the head and the guidance gates."""
    rates = {"head": settings.head_learning_rate, "gates": settings.gate_learning_rate}
    groups: dict[tuple[str, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        part = "gates" if name.endswith(GATES) else name.split(".")[0]
        decay = settings.weight_decay if parameter.ndim >= 2 and part != "gates" else 0.0
        groups.setdefault((part, decay), []).append(parameter)
    return torch.optim.AdamW(
        {
            "params": parameters,
            "lr": (rate := rates.get(part, settings.learning_rate)),
            "full_rate": rate,
            "part": part,
            "weight_decay": decay,
        }
        for (part, decay), parameters in groups.items()
    )


def set_rates(optimizer: torch.optim.Optimizer, settings: OptimiserSettings, moment: Moment) -> None:
    """Give every group of parameters the learning rate of this step."""
    done = (moment.epoch - 1) * moment.steps_per_epoch + moment.step - 1
    for group in optimizer.param_groups:
        group["lr"] = group["full_rate"] * rate_factor(
            settings.schedule,
            part=group["part"],
            step=done,
            total_steps=settings.epochs * moment.steps_per_epoch,
            warmup=settings.warmup,
        )
