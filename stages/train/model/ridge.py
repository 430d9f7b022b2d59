"""Joints of future frames from the observed poses alone, by a ridge regression in closed form.

It is the baseline that learns, and the head's start: a head that has learned nothing predicts just this. What
was fitted (`stages.train.data.ridge`) is saved with the weights, so that a run carries its own baseline.

A displacement from the last known pose is predicted for each future frame by itself. Tables have a row for
each frame that training covers. Later frames take the last row: a displacement of their own was never seen.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinkjepa.stages.train.data.poses import ObservedPoses, input_frames
from thinkjepa.stages.train.data.statistics import JointStatistics


@dataclass(frozen=True, slots=True)
class RidgeFit:
    """A fitted ridge, float32, and the statistics of the training clips' joints by future frame."""

    positions: JointStatistics
    """Of the joints, `(step, frame, joint, 3)` and `(step, frame, joint, 1)`."""
    displacements: JointStatistics
    """Of their displacements from the last known pose."""
    inputs: JointStatistics
    """Of the inputs where they are known, `(frame, joint, 3)` and `(frame, joint, 1)`."""
    known_share: Tensor
    """Share of the training clips in which an input is known, `(frame, joint)`."""
    bias: Tensor
    """Displacement at mean inputs, metres, `(step, frame, joint, 3)`."""
    weight: Tensor
    """Metres by standardized input, `(step * frame * joint * 3, input)`."""


class PoseRidge(nn.Module):
    """The fitted ridge: joints `(batch, step, frame, joint, 3)`, metres. It has no parameters to train."""

    position_center: Tensor
    position_scale: Tensor
    moved_center: Tensor
    moved_scale: Tensor
    input_mean: Tensor
    input_scale: Tensor
    known_share: Tensor
    bias: Tensor
    weight: Tensor

    def __init__(
        self, *, num_steps: int, frames_per_step: int, num_joints: int, observed_frames: int
    ) -> None:
        super().__init__()
        inputs = (len(input_frames(observed_frames)), num_joints)
        table = (num_steps, frames_per_step, num_joints)
        for name in ("position", "moved"):
            self.register_buffer(f"{name}_center", torch.zeros(*table, 3))
            self.register_buffer(f"{name}_scale", torch.ones(*table, 1))
        self.register_buffer("input_mean", torch.zeros(*inputs, 3))
        self.register_buffer("input_scale", torch.ones(*inputs, 1))
        self.register_buffer("known_share", torch.ones(inputs))
        self.register_buffer("bias", torch.zeros(*table, 3))
        self.register_buffer("weight", torch.zeros(self.bias.numel(), 4 * self.known_share.numel()))

    def set_fit(self, fit: RidgeFit) -> None:
        """Predict by this fit from now on. It is saved with the weights."""
        self.position_center.copy_(fit.positions.mean)
        self.position_scale.copy_(fit.positions.scale)
        self.moved_center.copy_(fit.displacements.mean)
        self.moved_scale.copy_(fit.displacements.scale)
        self.input_mean.copy_(fit.inputs.mean)
        self.input_scale.copy_(fit.inputs.scale)
        for name in ("known_share", "bias", "weight"):
            getattr(self, name).copy_(getattr(fit, name))

    @property
    def num_steps(self) -> int:
        """Latent steps that the tables cover."""
        return len(self.bias)

    def steps(self, num_steps: int) -> Tensor:
        """Rows of the tables for so many steps; those past the end are the last one."""
        return torch.arange(num_steps, device=self.bias.device).clamp(max=self.num_steps - 1)

    def inputs(self, poses: ObservedPoses) -> Tensor:
        """Standardized inputs `(batch, frame, joint, 4)`: three numbers, 0 where unknown, and a flag."""
        return standardized_inputs(poses, self.input_mean, self.input_scale, self.known_share)

    def forward(self, poses: ObservedPoses, *, num_steps: int) -> Tensor:
        """Joints of `num_steps` steps. The mean position where a joint's last pose is not known."""
        device = poses.known.device.type
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):  # it knows no meta device
            moved_m = F.linear(self.inputs(poses).flatten(1), self.weight)
        moved_m = moved_m.view(-1, *self.bias.shape) + self.bias
        known_B11J1 = poses.last_known[:, None, None, :, None]
        joints_m = torch.where(
            known_B11J1 > 0, poses.last_pose_m[:, None, None] + moved_m, self.position_center
        )
        return joints_m[:, self.steps(num_steps)]


def standardized_inputs(poses: ObservedPoses, mean: Tensor, scale: Tensor, known_share: Tensor) -> Tensor:
    """Inputs `(batch, frame, joint, 4)` by statistics as in `RidgeFit`. Flags are centered, not scaled."""
    values_BFJ3, known_BFJ = poses.inputs()
    values_BFJ3 = (values_BFJ3 - mean) / scale * known_BFJ[..., None]
    return torch.cat((values_BFJ3, (known_BFJ - known_share)[..., None]), dim=-1)
