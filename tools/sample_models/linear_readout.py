"""Linear read-out of classes: a ridge regression to one-hots, its strength chosen on validation clips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from thinkjepa.stages.train.data.ridge import STRENGTHS, RidgeSolver


def share_read_right(states: Tensor, classes: Sequence[str], *, num_validation: int, num_test: int) -> float:
    """Share of the last `num_test` clips whose class is read off states `(clip, number)`.

    The clips before them choose the strength, the first ones are fitted.
    """
    names = sorted(set(classes))
    wanted = torch.tensor([names.index(name) for name in classes])
    num_train = len(wanted) - num_validation - num_test
    sizes = [num_train, num_validation, num_test]
    scale = states[:num_train].std(dim=0).mean()  # one for all dims: a dim that hardly varies stays small
    train, validation, test = (states.double() / scale).split(sizes)
    train_wanted, validation_wanted, test_wanted = wanted.split(sizes)
    solver = RidgeSolver(train)
    targets = F.one_hot(train_wanted, len(names)).double()
    mean = targets.mean(dim=0)

    def predicted(inputs: Tensor, strength: float) -> Tensor:
        return mean + (inputs - solver.mean) @ solver.weight(solver.coefficients(targets - mean, strength))

    def validation_error(strength: float) -> float:
        wanted_scores = F.one_hot(validation_wanted, len(names)).double()
        return float((predicted(validation, strength) - wanted_scores).square().mean())

    found = predicted(test, min(STRENGTHS, key=validation_error)).argmax(dim=1)
    return float((found == test_wanted).double().mean())
