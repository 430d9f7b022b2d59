"""AdamW for a forecast model, and its learning rates at each step.

Rates are a pure function of the step, so that a resumed run needs no state of a scheduler.
"""

import math
from dataclasses import dataclass

import torch

from thinkjepa.stages.train.model.forecast import ForecastModel
from thinkjepa.stages.train.settings import OptimizerSettings, Schedule

GATES = ("gates", "mixture")
"""Endings of the names of the few parameters that open the guidance or choose its levels."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step of training. Epochs, and steps within an epoch, count from 1."""

    epoch: int
    number: int
    steps_per_epoch: int

    @property
    def done(self) -> int:
        """Steps before this one, over all epochs."""
        return (self.epoch - 1) * self.steps_per_epoch + self.number - 1


PAPER_DECAY = 0.1
"""The head's rate after one and after two thirds of training, each time (arXiv 2603.22281)."""


def rate_factor(schedule: Schedule, *, part: str, step: int, total_steps: int, warmup: float) -> float:
    """Factor of a part's learning rate at `step`, counted from 0 over the whole run.

    `part` is "head" or another part of the model: schedule `paper` lowers the head's rate only. `warmup` is
    the share of the steps over which rates rise linearly, the last of them at the full rate.
    """
    warmup_steps = round(warmup * total_steps)
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if schedule == "cosine":
        done = max(0, step - warmup_steps) / max(1, total_steps - warmup_steps)
        return rise * 0.5 * (1 + math.cos(math.pi * done))
    if schedule == "paper" and part == "head":
        return rise * PAPER_DECAY ** (3 * step // total_steps)
    return rise


def make_optimizer(model: ForecastModel, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW: weight decay on linear layers' matrices only, rates of their own for the head and the gates.

    Mask token, queries and position embeddings are parameters of the modules themselves. Their names do not
    end in `.weight`, and they are not decayed although they are tables.
    """
    rates = {"head": settings.head_learning_rate, "gates": settings.gate_learning_rate}
    groups: dict[tuple[str, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        part = "gates" if name.endswith(GATES) else name.split(".")[0]
        is_matrix = parameter.ndim >= 2 and name.endswith(".weight")
        decay = settings.weight_decay if is_matrix else 0.0
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


def set_rates(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, step: Step) -> None:
    """Give every group of parameters the learning rate of this step."""
    for group in optimizer.param_groups:
        group["lr"] = group["full_rate"] * rate_factor(
            settings.schedule,
            part=group["part"],
            step=step.done,
            total_steps=settings.epochs * step.steps_per_epoch,
            warmup=settings.warmup,
        )
