"""Predicted latents next to the true ones: errors in time and space, and the steps they resemble most.

Shape letters: T latent steps, P patches (row-major height x width), D latent dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thinkjepa.stages.data.framing import Framing
from thinkjepa.stages.predict.frames import ChosenFrames


@dataclass(frozen=True, slots=True)
class PredictedLatents:
    """Latents of one video as the run looks at them, float32 on the CPU."""

    grid: tuple[int, int]
    """Patches of a frame, height and width."""
    tubelet: int
    """Frames of a latent step."""
    framing: Framing
    """The part of a frame that the encoder sees."""
    observed: Tensor
    """`(T, P, D)`"""
    predicted: Tensor
    """`(T, P, D)` of the future."""
    true: Tensor | None
    """As `predicted`; None where the video ends before the predicted future does."""

    @property
    def errors(self) -> Tensor | None:
        """Mean square over dims of predicted less true `(T, P)`."""
        return None if self.true is None else (self.predicted - self.true).square().mean(dim=-1)

    @property
    def persistence_errors(self) -> Tensor | None:
        """As `errors`, of the last observed step taken for all of the future."""
        return None if self.true is None else (self.observed[-1] - self.true).square().mean(dim=-1)

    @property
    def nearest(self) -> tuple[int, ...]:
        """For each predicted step, the step of the video with the least mean square distance.

        Steps count from the first observed one on, true future steps follow the observed ones.
        """
        known = self.observed if self.true is None else torch.cat([self.observed, self.true])
        distances = [(known - step).square().mean(dim=(1, 2)) for step in self.predicted]
        return tuple(int(of_step.argmin()) for of_step in distances)

    @property
    def num_found(self) -> int | None:
        """Predicted steps whose nearest step is the true one."""
        if self.true is None:
            return None
        first = len(self.observed)
        return sum(step == first + place for place, step in enumerate(self.nearest))

    def to_json(self, frames: ChosenFrames) -> dict[str, Any]:
        """Figures for each predicted step; latents themselves are left out."""
        return {
            "grid": list(self.grid),
            "step_times_s": [round(time_s, 6) for time_s in frames.future_times_s[:: self.tubelet]],
            "mse": _means(self.errors),
            "persistence_mse": _means(self.persistence_errors),
            "nearest_frames": [step_frame(frames, step, self.tubelet) for step in self.nearest],
            "nearest_is_true": self.num_found,
        }


def step_frame(frames: ChosenFrames, step: int, tubelet: int) -> int:
    """The first frame of a latent step, counted from the first observed step on."""
    return (*frames.observed, *frames.future)[step * tubelet]


def step_time_s(frames: ChosenFrames, step: int, tubelet: int) -> float:
    """The time of a step's first frame, seconds from the video's beginning."""
    return (*frames.observed_times_s, *frames.future_times_s)[step * tubelet]


def _means(errors_TP: Tensor | None) -> Sequence[float] | None:
    return None if errors_TP is None else [float(value) for value in errors_TP.double().mean(dim=1)]
