"""Observed poses for tests that need no labels."""

from __future__ import annotations

import torch
from torch import Tensor

from thinkjepa.stages.train.data.poses import ObservedPoses

FPS = 10.0


def still_poses(pose_m: Tensor, *, known: Tensor | None = None, num_frames: int = 6) -> ObservedPoses:
    """Hands that keep the pose `(batch, joint, 3)` over all observed frames; `known` is `(batch, joint)`."""
    known = torch.ones(pose_m.shape[:2]) if known is None else known
    times_s = (torch.arange(num_frames) - num_frames + 1) / FPS
    return ObservedPoses(
        positions_m=(pose_m * known[..., None])[:, None].repeat(1, num_frames, 1, 1),
        known=known[:, None].repeat(1, num_frames, 1),
        times_s=times_s.expand(len(pose_m), -1).clone(),
    )
