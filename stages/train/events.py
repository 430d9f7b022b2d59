"""Events of a training: its beginning, the end of each epoch, and notes. Command lines render them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinkjepa.stages.data.partition import SplitName, SplitSize

if TYPE_CHECKING:  # command lines start without torch
    from thinkjepa.stages.train.fit.state import EpochLosses


@dataclass(frozen=True, slots=True)
class RunStarts:
    """A training begins, or continues after `epochs_done` whole epochs and `steps_done` steps of the next."""

    variant: str
    num_joints: int
    has_labels: bool
    """Whether any clip could have been trained on for hands."""
    unknown_joints: tuple[str, ...]
    """Labelled and left out, as no training clip knows them."""
    labels_warning: str
    """Warning of joints that are metres apart, as in millimetres. Empty without any."""
    device: str
    processes: int
    threads: int
    parameters: int
    memory_bytes: int
    """Weights, optimizer and the clips of a forward, on each device; an estimate."""
    sizes: Mapping[SplitName, SplitSize]
    grouping: str
    split_warning: str
    """Warning of split sizes far from those asked for. Empty without any."""
    without_tokens: Mapping[SplitName, int]
    """Clips of each split without a token that cross-attention reads. Empty where it reads none."""
    guidance_source: str
    """The control that guides instead of the clips' own states, in words. Empty for these."""
    epochs: int
    select_by: str
    """Figure of the validation clips by which the best epoch is kept."""
    epochs_done: int
    steps_done: int
    steps_per_epoch: int


@dataclass(frozen=True, slots=True)
class EpochEnds:
    """An epoch is trained and validated. `best`: by `--select-by`, of all so far."""

    losses: EpochLosses
    epochs: int
    best: bool


TrainEvent = RunStarts | EpochEnds | str
"""A string is a note: one line worth reading."""

Report = Callable[[TrainEvent], None]


def report_nothing(event: TrainEvent) -> None:
    """For scripts and tests."""
