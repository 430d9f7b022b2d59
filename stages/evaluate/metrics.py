"""Metrics: one registry of what is measured and how it is shown, and the computations.

Latent metrics are distances between predicted and encoded latents, trajectory metrics between predicted and
labeled joints. Both are computed for each clip. A new metric is a line in `METRICS` and a line in
`latent_metrics` or `trajectory_metrics`.

Times are seconds after the last observed frame, from the clips' real frame times.

Shape letters: B batch, T latent steps, P patches, D latent dim, K frames of a step, J joints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from thinkjepa.cache import ClipRow
from thinkjepa.stages.data.joints import KEYPOINTS
from thinkjepa.stages.data.sampling import seconds_ahead
from thinkjepa.stages.display import (
    ABSOLUTE,
    CLIPS,
    COSINE,
    LOSS,
    MILLIMETERS,
    RANK,
    RATIO,
    SHARE,
    SQUARED,
    Unit,
)
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.details.hands import (
    hands_of,
    moving_joints,
    procrustes_aligned,
    wrist_relative,
)

MetricKind = Literal["trajectory", "latent"]
Exhibit = Literal["page", "horizon", "distances", "rollout"]
"""The tables of page and ranking, the curves over the horizon, the dot pictures, the rollout report."""

POSE_BASELINES = (
    "ridge",
    "constant_pose",
    "constant_velocity",
    "damped_velocity",
    "mean_displacement",
    "mean_pose",
)
"""Methods without a trained network that predict joints."""

LATENT_BASELINES = ("latent_persistence", "mean_latent")
"""Those that predict latents."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as reports show it."""

    name: str
    kind: MetricKind
    title: str
    unit: Unit
    exhibits: tuple[Exhibit, ...] = ()
    """Where it is shown besides the tables of its kind."""
    detail: bool = False
    """Whether only the table of details shows it, without intervals."""
    by_step: bool = False
    """Whether it has a value at each latent step, too."""
    better_when_larger: bool = False
    over_clips: bool = False
    """Whether it is a figure of a set of clips and no mean over them: without interval and difference."""
    at_last_frame: bool = False
    """Whether it is taken at the last future frame only, whose time its title then names."""
    best_of: str | None = None
    """The metric of which it takes each clip's smallest value over the seeds of a group."""
    to_beat: tuple[str, ...] = ()
    """Methods without training that reports compare each model with in words, by this metric."""

    def label(self, *, last_frame_s: float | None = None) -> str:
        """The name in a table, with its unit: `FDE at 0.35 s (mm)`."""
        when = f" at {last_frame_s:.2f} s" if self.at_last_frame and last_frame_s is not None else ""
        return f"{self.title}{when}{self.unit.note}"

    def heading(self, *, last_frame_s: float | None = None) -> str:
        """The name by itself, without its unit: `latent L2`."""
        label = self.label(last_frame_s=last_frame_s).removesuffix(self.unit.note)
        return f"latent {label}" if self.kind == "latent" else label

    @property
    def arrow(self) -> str:
        """Up where larger is better, else down."""
        return "↑" if self.better_when_larger else "↓"

    def is_better(self, difference: float) -> bool:
        """True if a value that differs by this much from another one is better than it."""
        return (difference > 0) == self.better_when_larger


EVERYWHERE: tuple[Exhibit, ...] = ("page", "horizon", "distances", "rollout")


def _set_figure(name: str, title: str, unit: Unit, *, better_when_larger: bool = True) -> Metric:
    return Metric(
        name, "latent", title, unit, detail=True, over_clips=True, better_when_larger=better_when_larger
    )


METRICS = {
    metric.name: metric
    for metric in (
        Metric("ade_m", "trajectory", "ADE", MILLIMETERS, EVERYWHERE, by_step=True, to_beat=POSE_BASELINES),
        Metric(
            "fde_m", "trajectory", "FDE", MILLIMETERS, ("page", "distances", "rollout"), at_last_frame=True
        ),
        Metric("acc_5cm", "trajectory", "within 5 cm", SHARE, ("page", "distances"), better_when_larger=True),
        Metric("keypoint_m", "trajectory", "keypoints", MILLIMETERS, ("distances",)),
        Metric("moving_m", "trajectory", "joints that move", MILLIMETERS, detail=True),
        Metric("wrist_relative_m", "trajectory", "relative to the wrist", MILLIMETERS, detail=True),
        Metric("procrustes_m", "trajectory", "Procrustes-aligned", MILLIMETERS, detail=True),
        Metric(
            "keypoint_best_seed_m",
            "trajectory",
            "keypoints, each clip's best seed",
            MILLIMETERS,
            best_of="keypoint_m",
        ),
        Metric("inside_view_m", "trajectory", "joints the encoder sees", MILLIMETERS, detail=True),
        Metric("outside_view_m", "trajectory", "joints it does not see", MILLIMETERS, detail=True),
        Metric("l1", "latent", "L1", ABSOLUTE, by_step=True),
        Metric("l2", "latent", "L2", SQUARED, EVERYWHERE, by_step=True, to_beat=LATENT_BASELINES),
        Metric("smooth_l1", "latent", "smooth L1", ABSOLUTE, by_step=True),
        Metric("cosine", "latent", "cosine", COSINE, EVERYWHERE, by_step=True, better_when_larger=True),
        _set_figure("skill_persistence", "skill over persistence", RATIO),
        _set_figure("skill_mean", "skill over the mean latent", RATIO),
        _set_figure("variance_ratio", "variance ratio", RATIO),
        _set_figure("effective_rank", "effective rank", RANK),
        Metric("retrieved", "latent", "own future first", CLIPS, detail=True, better_when_larger=True),
        Metric("retrieval_rank", "latent", "its mean rank", RANK, detail=True),
        _set_figure("candidates", "other futures", RANK),
        _set_figure("median_rank", "its median rank", RANK, better_when_larger=False),
    )
}
"""All metrics by name, in the order of tables.

`keypoint_best_seed_m` takes the better of models trained apart. It is not EgoDex's best of K, which takes the
better of K predictions that one model draws: no model here draws any.
"""

TRAJECTORY_METRICS = tuple(name for name, metric in METRICS.items() if metric.kind == "trajectory")
LATENT_METRICS = tuple(name for name, metric in METRICS.items() if metric.kind == "latent")


@dataclass(frozen=True, slots=True)
class ValidationMetric:
    """A figure of validation clips in `metrics.json`: of the epoch whose weights were kept."""

    title: str
    unit: Unit

    @property
    def label(self) -> str:
        """The name in a table, with its unit."""
        return f"{self.title}{self.unit.note}"


VALIDATION_METRICS = {
    "validation_distance_m": ValidationMetric("validation distance", MILLIMETERS),
    "validation_latent_error": ValidationMetric("validation latent error", ABSOLUTE),
    "validation_loss": ValidationMetric("validation loss", LOSS),
}


def exhibited(exhibit: Exhibit) -> list[Metric]:
    """The metrics of an exhibit, in the order of `METRICS`."""
    return [metric for metric in METRICS.values() if exhibit in metric.exhibits]


def step_horizons_s(clip: ClipRow, *, windows: int, tubelet: int) -> list[float]:
    """Seconds from the last observed frame to the middle of each latent step's frames, of the first windows.

    A latent step covers `tubelet` frames; its time is the mean of their presentation times.
    """
    frames_s = frames_ahead_s(clip, windows=windows)
    if len(frames_s) % tubelet:
        raise StageError(
            f"{clip.label}: {len(frames_s)} future frames are no multiple of the encoder's tubelet {tubelet}"
        )
    return list(frames_s.reshape(-1, tubelet).mean(axis=1))


def frames_ahead_s(clip: ClipRow, *, windows: int) -> npt.NDArray[np.float64]:
    """Seconds from the last observed frame to each future frame, of the first windows."""
    return seconds_ahead(
        [time_s for times_s in clip.future_times_s[:windows] for time_s in times_s],
        observed_times_s=clip.observed_times_s,
    )


def horizon_summary(horizons_s: npt.NDArray[np.float64]) -> list[dict[str, float]]:
    """Mean, smallest and largest of `(clip, step)` seconds: a record per latent step, the first is step 1."""
    return [{"step": step, **time_summary(column)} for step, column in enumerate(horizons_s.T, start=1)]


def time_summary(seconds: npt.NDArray[np.float64] | Sequence[float]) -> dict[str, float]:
    """Mean, smallest and largest over clips."""
    return {
        "seconds": float(np.mean(seconds)),
        "seconds_min": float(np.min(seconds)),
        "seconds_max": float(np.max(seconds)),
    }


def latent_metrics(predicted: Tensor, future: Tensor) -> dict[str, Tensor]:
    """Metrics by name, each `(clip, step)` float64, from two `(batch, step, patch, dim)` tensors.

    l1: mean absolute error; l2: mean *squared* error; smooth_l1: Huber-like with beta 1 (quadratic below an
    error of 1); all three are means over patches and dims. cosine: similarity of each patch's latent, mean
    over patches, 1 at best.
    """
    predicted_BTPD, future_BTPD = predicted.double(), future.double()
    error = predicted_BTPD - future_BTPD
    smooth = F.smooth_l1_loss(predicted_BTPD, future_BTPD, reduction="none", beta=1.0)
    cosine = torch.cosine_similarity(predicted_BTPD, future_BTPD, dim=-1)
    return {
        "l1": error.abs().mean(dim=(2, 3)),
        "l2": error.square().mean(dim=(2, 3)),
        "smooth_l1": smooth.mean(dim=(2, 3)),
        "cosine": cosine.mean(dim=2),
    }


ACCURATE_M = 0.05


def counted_joint_frames(future_confidence: Tensor, last_known: Tensor) -> Tensor:
    """Joint-frames that count, `(batch, step, frame, joint)` bool, for every method alike.

    Those that are labelled (confidence above 0), of joints that were seen in the observed window: no baseline
    can say anything of the others. `last_known` is `(batch, joint)`.
    """
    return (future_confidence > 0) & (last_known > 0)[:, None, None]


def trajectory_metrics(
    predicted_m: Tensor,
    future_m: Tensor,
    counted: Tensor,
    *,
    last_pose_m: Tensor,
    joints: Sequence[str],
) -> dict[str, Tensor]:
    """Metrics by name, `(clip,)` float64, and curves `<name>_by_step`, `(clip, step)`.

    Positions are `(batch, step, frame, joint, 3)` in metres, `last_pose_m` `(batch, joint, 3)`. ade_m: mean
    distance over counted joint-frames; fde_m: over those of the last frame; acc_5cm: share of them within
    5 cm (inclusive); keypoint_m: ade_m of EgoDex's keypoints among `joints`; moving_m: ade_m of joints that
    move; wrist_relative_m and procrustes_m: as in `details.hands`. All joint-frames weigh the same, whatever
    their confidence. NaN where a clip has none that counts.
    """
    predicted, future = predicted_m.double(), future_m.double()
    distance_BTKJ = torch.linalg.vector_norm(predicted - future, dim=-1)
    accurate_BTKJ = (distance_BTKJ <= ACCURATE_M).double()
    chosen = [index for index, name in enumerate(joints) if name in KEYPOINTS]
    hands = hands_of(joints)
    by_step_BT = mean_counted(distance_BTKJ.flatten(0, 1), counted.flatten(0, 1))
    return {
        "ade_m": mean_counted(distance_BTKJ, counted),
        "fde_m": mean_counted(distance_BTKJ[:, -1, -1], counted[:, -1, -1]),
        "acc_5cm": mean_counted(accurate_BTKJ, counted),
        "keypoint_m": mean_counted(distance_BTKJ[..., chosen], counted[..., chosen]),
        "moving_m": mean_counted(distance_BTKJ, moving_joints(future, last_pose_m.double(), counted)),
        "wrist_relative_m": mean_counted(*wrist_relative(predicted, future, counted, hands)),
        "procrustes_m": mean_counted(*procrustes_aligned(predicted, future, counted, hands)),
        "ade_m_by_step": by_step_BT.view(counted.shape[:2]),
    }


def mean_counted(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of the counted values of each row; 0 / 0 gives NaN where there are none."""
    total = torch.where(counted, values, 0.0).flatten(1).sum(dim=1)
    return total / counted.flatten(1).sum(dim=1)
