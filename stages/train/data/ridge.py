"""The closed form of the ridge from observed poses to the joints of future frames.

One singular value decomposition of the standardized inputs gives the fit of every strength, in float64. The
strength is the one whose joints are nearest on the validation clips, with the mean displacement (an infinite
strength) among the candidates. Nothing but labels is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thinkjepa.stages.train.data.features import Features
from thinkjepa.stages.train.data.poses import ObservedPoses, TrajectoryBatch
from thinkjepa.stages.train.data.statistics import joint_statistics, sample_batches
from thinkjepa.stages.train.model.ridge import RidgeFit, standardized_inputs

STRENGTHS = (float("inf"), *(10 ** (half / 2) for half in range(8, -9, -1)))
"""Penalties to choose from, of standardized inputs, per clip: from the mean displacement to nearly none."""

FILLS = 20
"""Passes that fill unknown targets with the fit's own predictions, so that they have no part in it."""


@dataclass(frozen=True, slots=True)
class Displacements:
    """Joints' displacements from the last known pose, float64, metres."""

    moved_m: Tensor
    """`(batch, step, frame, joint, 3)`, zeros where not counted."""
    counted: Tensor
    """`(batch, step, frame, joint, 1)`: 1 where the joint is known there and in the observed window."""

    @classmethod
    def of(cls, joints: TrajectoryBatch) -> "Displacements":
        moved_m = (joints.future_m - joints.poses.last_pose_m[:, None, None]).double()
        counted = (joints.future_confidence > 0) & (joints.last_known > 0)[:, None, None]
        return cls(moved_m * counted[..., None], counted[..., None].double())

    def distance_m(self, predicted_m: Tensor) -> float:
        """Mean distance of a prediction, over each clip's counted joints and frames, then over clips."""
        distances = (predicted_m.view_as(self.moved_m) - self.moved_m).norm(dim=-1, keepdim=True)
        counts = self.counted.flatten(1).sum(dim=1)
        of_clips = (distances * self.counted).flatten(1).sum(dim=1) / counts
        return float(of_clips.nanmean().nan_to_num(float("inf")))


class RidgeSolver:
    """Ridge regressions of all strengths, on one matrix of inputs `(clip, input)`."""

    def __init__(self, inputs: Tensor) -> None:
        self.mean = inputs.mean(dim=0)
        self.left, self.singular, right = torch.linalg.svd(inputs - self.mean, full_matrices=False)
        self.right = right.T

    def coefficients(self, targets: Tensor, strength: float) -> Tensor:
        """Coefficients `(singular value, output)` of centered targets `(clip, output)`."""
        shrunk = self.singular / (self.singular.square() + len(targets) * strength)
        found: Tensor = shrunk[:, None] * (self.left.T @ targets)
        return found

    def weight(self, coefficients: Tensor) -> Tensor:
        """Weights `(input, output)`."""
        weight: Tensor = self.right @ coefficients
        return weight

    def fit(self, targets: Displacements, strength: float, *, fills: int) -> tuple[Tensor, Tensor]:
        """Bias `(output,)` at the inputs' mean, and coefficients.

        Unknown targets begin as the mean of the known ones. Each of `fills` passes replaces them by the
        prediction, which converges to the fit on the known ones alone.
        """
        counted = targets.counted.expand_as(targets.moved_m).flatten(1)
        moved_m = targets.moved_m.flatten(1)
        bias = moved_m.sum(dim=0) / counted.sum(dim=0).clamp(min=1)
        filled = torch.where(counted > 0, moved_m, bias)
        coefficients = self.coefficients(filled - bias, strength)
        for _ in range(0 if bool(counted.all()) else fills):
            predicted = bias + self.left @ (self.singular[:, None] * coefficients)
            filled = torch.where(counted > 0, moved_m, predicted)
            bias = filled.mean(dim=0)
            coefficients = self.coefficients(filled - bias, strength)
        return bias, coefficients


def fit_ridge(features: Features, train_ids: Sequence[str], validation_ids: Sequence[str]) -> RidgeFit:
    """Fit on the training clips (of many, on a fixed sample), its strength chosen on the validation clips."""
    train, validation = (_joints_of(features, clip_ids) for clip_ids in (train_ids, validation_ids))
    values, known = train.poses.inputs()
    inputs, known_share = joint_statistics([(values, known)]), known.mean(dim=0)
    own, other = (
        standardized_inputs(item.poses, inputs.mean, inputs.scale, known_share).flatten(1).double()
        for item in (train, validation)
    )
    solver, targets, wanted = RidgeSolver(own), Displacements.of(train), Displacements.of(validation)
    projected = (other - solver.mean) @ solver.right

    def validation_distance_m(strength: float) -> float:
        bias, coefficients = solver.fit(targets, strength, fills=0)
        return wanted.distance_m(bias + projected @ coefficients)

    bias, coefficients = solver.fit(targets, min(STRENGTHS, key=validation_distance_m), fills=FILLS)
    weight = solver.weight(coefficients)
    return RidgeFit(
        positions=joint_statistics([(train.future_m, train.future_confidence)]),
        displacements=joint_statistics([(targets.moved_m, targets.counted[..., 0])]),
        inputs=inputs,
        known_share=known_share,
        bias=(bias - solver.mean @ weight).view(train.future_m.shape[1:]).float(),
        weight=weight.T.contiguous().float(),
    )


def _joints_of(features: Features, clip_ids: Sequence[str]) -> TrajectoryBatch:
    """The joints of all clips, or of a fixed sample where there are many."""
    parts = [features.trajectories(batch, torch.device("cpu")) for batch in sample_batches(clip_ids)]
    names = ("positions_m", "known", "times_s")
    return TrajectoryBatch(
        ObservedPoses(*(torch.cat([getattr(part.poses, name) for part in parts]) for name in names)),
        torch.cat([part.future_m for part in parts]),
        torch.cat([part.future_confidence for part in parts]),
    )
