"""Baselines learned from a run's training clips: mean latents and joints, how fast movements come to rest.

They are what any trained model has to beat: they know the training clips and nothing of the clip at hand but
its observed poses. They are learned anew from the cache at each evaluation, in float64, from all training
clips or a fixed sample of them.

Shape letters: B batch, T latent steps, P patches, D latent dim, K frames of a step, J joints.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thinkjepa.stages.evaluate.metrics import counted_joint_frames
from thinkjepa.stages.evaluate.motion import damped_velocity, future_times_s
from thinkjepa.stages.train.data.batches import batches_in_order
from thinkjepa.stages.train.data.features import Features
from thinkjepa.stages.train.data.poses import TrajectoryBatch
from thinkjepa.stages.train.data.ridge import fit_ridge
from thinkjepa.stages.train.model.ridge import PoseRidge
from thinkjepa.stages.train.randomness import epoch_order

SAMPLE_CLIPS = 4096
SAMPLE_BATCH = 64

LATENT_CLIPS = 256
"""Enough for a mean: its error is a sixteenth of the latents' deviation."""

LATENT_BATCH = 16

DAMPING_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Time constants of a damped velocity to choose from, each twice the one before."""


@dataclass(frozen=True, slots=True)
class LearnedMotion:
    """Means over training clips of the joint-frames that count, float64, 0 where none does."""

    pose_m: Tensor
    """`(joint, 3)`, metres, over the frames of the first window."""
    displacement_m: Tensor
    """`(step, frame, joint, 3)`, metres, from each joint's last observed position."""
    damping_s: float
    """The time constant of `DAMPING_S` with the smallest mean distance in the first window."""


@dataclass(frozen=True, slots=True)
class Learned:
    """All that baselines know of the training clips."""

    latent: Tensor | None
    """Mean future latent of each patch `(patch, dim)`, float64, over the first window; None without any."""
    motion: LearnedMotion | None
    """None in a run on latents alone."""


def learn(features: Features, train_ids: Sequence[str], *, device: torch.device) -> Learned | None:
    """Learn from the run's training clips. None where the cache lacks one of them."""
    if num_lacking(features, train_ids):
        return None
    motion = learn_motion(features, train_ids) if features.supervision else None
    latent = mean_latent(features, train_ids, device=device) if features.reads_latents else None
    return Learned(latent, motion)


def mean_latent(features: Features, train_ids: Sequence[str], *, device: torch.device) -> Tensor:
    """The mean future latent of each patch `(patch, dim)`, over steps of the first window and clips."""
    total, num_clips = torch.zeros((), dtype=torch.float64, device=device), 0
    first_window = replace(features, windows=1)
    for clip_ids in _sample(train_ids, most=LATENT_CLIPS, batch_size=LATENT_BATCH):
        _, future_BTPD = first_window.batch(clip_ids, device).latents
        total = total + future_BTPD.double().mean(dim=1).sum(dim=0)
        num_clips += len(clip_ids)
    return total / num_clips


def learn_motion(features: Features, train_ids: Sequence[str]) -> LearnedMotion:
    """Learn from the training clips' joints."""
    count = poses = displacements = distances = torch.zeros((), dtype=torch.float64)
    window = slice(features.grid.future_steps)
    for truth, ahead_s in _training_clips(features, train_ids):
        counted_BTKJ = counted_joint_frames(truth.future_confidence, truth.last_known)
        future_m, last_m = truth.future_m.double(), truth.poses.last_pose_m.double()
        weight = counted_BTKJ.double()[..., None]
        count = count + weight.sum(dim=0)
        poses = poses + (weight * future_m).sum(dim=0)
        displacements = displacements + (weight * (future_m - last_m[:, None, None])).sum(dim=0)
        in_window = counted_BTKJ[:, window]
        errors = [
            damped_velocity(truth.poses, ahead_s, damping_s=damping_s).view_as(future_m) - future_m
            for damping_s in DAMPING_S
        ]
        distances = distances + torch.stack(
            [torch.linalg.vector_norm(error[:, window][in_window], dim=-1).sum() for error in errors]
        )
    return LearnedMotion(
        pose_m=poses[window].sum(dim=(0, 1)) / count[window].sum(dim=(0, 1)).clamp(min=1),
        displacement_m=displacements / count.clamp(min=1),
        damping_s=DAMPING_S[int(distances.argmin())],
    )


def reaching_ridge(
    ridge: PoseRidge, features: Features, train_ids: Sequence[str], validation_ids: Sequence[str]
) -> PoseRidge:
    """The run's own ridge, fitted anew where the features reach further than what the run has learned.

    Where the cache lacks a clip that it needs for that, the run's own is returned, which holds its last
    displacement.
    """
    num_steps, frames_per_step = features.grid.future_steps * features.windows, features.tubelet
    if num_steps <= ridge.num_steps or num_lacking(features, [*train_ids, *validation_ids]):
        return ridge
    longer = PoseRidge(
        num_steps=num_steps,
        frames_per_step=frames_per_step,
        num_joints=ridge.bias.shape[2],
        observed_frames=features.grid.observed_steps * frames_per_step,
    )
    longer.set_fit(fit_ridge(features, train_ids, validation_ids))
    return longer


def num_lacking(features: Features, train_ids: Sequence[str]) -> int:
    """Number of the run's training clips that the cache has no features or labels of."""
    return len(set(train_ids)) - len(features.clips.only(train_ids))


def _training_clips(features: Features, train_ids: Sequence[str]) -> Iterator[tuple[TrajectoryBatch, Tensor]]:
    """Yield joints and future times `(batch, frame)` of the training clips, or of a fixed sample of them."""
    for clip_ids in _sample(train_ids, most=SAMPLE_CLIPS, batch_size=SAMPLE_BATCH):
        rows = {clip.clip_id: clip for clip in features.clips.only(clip_ids)}
        clips = [rows[clip_id] for clip_id in clip_ids]
        truth = features.trajectories(clip_ids, torch.device("cpu"))
        yield truth, future_times_s(clips, windows=features.windows)


def _sample(train_ids: Sequence[str], *, most: int, batch_size: int) -> list[tuple[str, ...]]:
    """Batches of the training clips, or of a fixed sample where there are many."""
    order = epoch_order(len(train_ids), seed=0, epoch=0)[:most]
    return batches_in_order([train_ids[index] for index in sorted(order)], batch_size=batch_size)
