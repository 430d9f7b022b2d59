"""The course of the learning rates: a pure function of the step, so that a resumed run needs no state."""

import math
from typing import Literal

Schedule = Literal["constant", "cosine", "paper"]

PAPER_DECAY = 0.1
"""The head's rate after one and after two thirds of training, each time (arXiv 2603.22281)."""


def rate_factor(schedule: Schedule, *, part: str, step: int, total_steps: int, warmup: float) -> float:
    """What a part's learning rate is multiplied by at `step`, counted from 0 over the whole run.

    `part` is "head" or another part of the model: schedule `paper` lowers the head's rate only. `warmup` is
    the share of the steps over which rates rise linearly; the last of them has the full rate.
    """
    warmup_steps = round(warmup * total_steps)
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if schedule == "cosine":
        done = max(0, step - warmup_steps) / max(1, total_steps - warmup_steps)
        return rise * 0.5 * (1 + math.cos(math.pi * done))
    if schedule == "paper" and part == "head":
        return rise * PAPER_DECAY ** (3 * step // total_steps)
    return rise
