"""Figures of a whole set of clips that are no mean of scores of single clips.

Shape letters: B batch, T latent steps, K frames of a step, J joints.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from thinkjepa.stages.evaluate.baselines import Predicted
from thinkjepa.stages.evaluate.metrics import counted_joint_frames
from thinkjepa.stages.evaluate.scores import Scores
from thinkjepa.stages.evaluate.table import ClipTable, JointCurves
from thinkjepa.stages.train.data.poses import TrajectoryBatch

SKILLS = {"skill_persistence": "latent_persistence", "skill_mean": "mean_latent"}
"""The baseline that each skill is over."""


def skills(scores: Scores, *, step: int = 0) -> dict[str, dict[str, float]]:
    """By method and metric: 1 - error / error of a baseline, of mean squared errors over all clips.

    0 is as good as the baseline, 1 perfect. Step 0 stands for the whole future. Left out for a baseline
    itself, and where it has no error.
    """
    errors = {
        score.method: float(np.nanmean(values))
        for score, values in scores.items()
        if (score.metric, score.step) == ("l2", step)
    }
    found: dict[str, dict[str, float]] = {method: {} for method in errors}
    for name, baseline in SKILLS.items():
        for method in errors.keys() - {baseline}:
            if errors.get(baseline):
                found[method][name] = 1 - errors[method] / errors[baseline]
    return found


def figures_over_clips(table: ClipTable, *, step: int = 0) -> dict[str, dict[str, float]]:
    """The metrics of an evaluation that are over clips, by method, and those of the true `future`.

    At a rollout's horizon `step`, or of the whole future.
    """
    found = {method: dict(figures) for method, figures in table.over_clips.items()} if not step else {}
    for method, figures in skills(table.scores, step=step).items():
        found.setdefault(method, {}).update(figures)
    for score, values in table.scores.items():
        if (score.metric, score.step) == ("retrieval_rank", step) and not np.isnan(values).all():
            found[score.method]["median_rank"] = float(np.nanmedian(values))
    return found


class JointErrors:
    """Mean distance of each joint at each latent step, for every method that predicts joints.

    As everywhere, a clip weighs the same however many of its frames count: the mean is over clips, of each
    clip's mean over the step's frames that count.
    """

    def __init__(self) -> None:
        self._total_m: dict[str, Tensor] = {}
        self._num_clips: Tensor | int = 0

    def add(self, predicted: Mapping[str, Predicted], truth: TrajectoryBatch) -> None:
        """Add the clips of a batch."""
        counted_BTKJ = counted_joint_frames(truth.future_confidence, truth.last_known)
        frames_BTJ = counted_BTKJ.sum(dim=2)
        self._num_clips = self._num_clips + (frames_BTJ > 0).sum(dim=0)
        for method, found in predicted.items():
            for draw in found.draws:
                if draw.joints_m is None:
                    continue
                error_BTKJ3 = draw.joints_m.double() - truth.future_m.double()
                distance = torch.where(counted_BTKJ, torch.linalg.vector_norm(error_BTKJ3, dim=-1), 0.0)
                mean_BTJ = distance.sum(dim=2) / frames_BTJ.clamp(min=1) / len(found.draws)
                self._total_m[method] = self._total_m.get(method, 0.0) + mean_BTJ.sum(dim=0)

    def curves(self, joints: Sequence[str]) -> JointCurves:
        """A mean (m) for each latent step, None where no clip has one."""
        return {
            method: {
                joint: [None if math.isnan(mean) else mean for mean in column]  # 0 / 0
                for joint, column in zip(joints, (total_TJ / self._num_clips).T.tolist(), strict=True)
            }
            for method, total_TJ in self._total_m.items()
        }
