"""The trajectory head: hand joints at the frames of future latent steps.

    states = latents of the step + observed poses + number of the step
    joints = start + scale * (linear(states) + nonlinear(states))

The start is the ridge on the observed poses. The output layers begin at zero, so that training begins at the
ridge, exactly. Training clips are few, and what the head adds can do harm on others: so a share of it counts
that validation clips choose after every epoch, from all of it to none.

Where a variant has a reader (`model.reader`), its states stand in for what is read off latents.

A displacement cannot be read off latents by a head that does not know where it starts, and one scale for all
frames lets the hand jump in the first one: centers and scales are those of each frame. A head that reads
latents alone starts from the mean over the training clips instead, and all of it counts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinkjepa.stages.train.data.poses import ObservedPoses
from thinkjepa.stages.train.model.config import LatentGrid, ModelShape
from thinkjepa.stages.train.model.ridge import PoseRidge

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Shares of what a head adds to the ridge, of which validation clips choose one: the first of equals."""

NUM_QUERIES = 8  # pooled summaries of a step's patches: a hand covers few patches at once


class PatchReader(nn.Module):
    """A state for each step `(batch, step, width)`, from its latents `(batch, step, patch, dim)`.

    Learned queries attend over a step's patches, which carry learned positions, since positions in the
    picture are to be found.
    """

    def __init__(self, grid: LatentGrid, *, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(grid.dim)
        self.embed = nn.Linear(grid.dim, width)
        self.patch_embedding = nn.Parameter(torch.zeros(grid.tokens_per_step, width))
        self.queries = nn.Parameter(torch.zeros(NUM_QUERIES, width))
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.pooled_norm = nn.LayerNorm(NUM_QUERIES * width)
        self.hidden = nn.Linear(NUM_QUERIES * width, width)

    def forward(self, latents: Tensor) -> Tensor:
        patches_BTPW = self.embed(self.norm(latents)) + self.patch_embedding
        queries_BTQW = self.queries.to(patches_BTPW.dtype).expand(*patches_BTPW.shape[:2], -1, -1)
        pooled_BTQW = F.scaled_dot_product_attention(
            queries_BTQW, self.key(patches_BTPW), self.value(patches_BTPW)
        )
        states_BTW: Tensor = self.hidden(self.pooled_norm(pooled_BTQW.flatten(2)))
        return states_BTW


class TrajectoryHead(nn.Module):
    """Joint positions `(batch, step, frame, joint, 3)`, metres, read step by step."""

    share: Tensor
    """Share of what the head adds to its start, 1 while it trains."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        assert shape.head is not None, "the shape of a model with a head"
        self.shape, head = shape.head, shape.head
        observed_frames = shape.grid.observed_steps * head.frames_per_step
        self.ridge = PoseRidge(
            num_steps=shape.trained_steps,
            frames_per_step=head.frames_per_step,
            num_joints=len(head.joints),
            observed_frames=observed_frames,
        )
        self.reader = None if head.reader_depth else PatchReader(shape.grid, width=head.width)
        self.hidden_norm = nn.LayerNorm(head.width)
        self.output = nn.Linear(head.width, head.frames_per_step * len(head.joints) * 3)
        self.linear = nn.Linear(head.width, self.output.out_features, bias=False)
        self.of_poses = PoseTerms(self.ridge, width=head.width) if head.reads_poses else None
        self.register_buffer("share", torch.ones(()))

    def begin_at_start(self) -> None:
        """Set the output layers to zero: joints are then those of the start."""
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.linear.weight)

    def forward(self, read: Tensor, poses: ObservedPoses) -> Tensor:
        """Joints of the steps of latents `(batch, step, patch, dim)`, or of a reader's states.

        Latents past the trained steps are read as those of the last trained one.
        """
        states_BTW = read if self.reader is None else self.reader(read)
        steps = self.ridge.steps(states_BTW.shape[1])
        if self.of_poses is not None:
            states_BTW = states_BTW + self.of_poses(self.ridge.inputs(poses), steps)
        relative = self.output(self.hidden_norm(F.gelu(states_BTW))).float() + self.linear(states_BTW).float()
        relative_BTKJ3 = relative.view(*relative.shape[:2], self.shape.frames_per_step, -1, 3)
        start_m, scale_m = self._start(poses)
        joints_m: Tensor = start_m[:, steps] + self.share * scale_m[:, steps] * relative_BTKJ3
        return joints_m

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares to choose from. A head of latents alone, the paper's, counts whole."""
        return SHARES if self.of_poses is not None else SHARES[:1]

    def at_shares(self, joints_m: Tensor, poses: ObservedPoses) -> list[Tensor]:
        """Joints at each of `shares`, from those of the whole head."""
        start_m = self._start(poses)[0][:, self.ridge.steps(joints_m.shape[1])]
        return [joints_m if share == 1 else start_m + share * (joints_m - start_m) for share in self.shares]

    def unit_m(self, poses: ObservedPoses) -> Tensor:
        """Deviation of each joint around its start, over all frames, `(batch, 1, 1, joint, 1)`, metres.

        It is the unit of the joints' errors in the loss.
        """
        _, scale_m = self._start(poses)
        return scale_m.square().mean(dim=(1, 2), keepdim=True).sqrt()

    def _start(self, poses: ObservedPoses) -> tuple[Tensor, Tensor]:
        """Joints that are predicted with no more than this, of the trained steps, and the unit around them.

        Both are `(batch, step, frame, joint, 3 or 1)`, metres.
        """
        ridge, known_B11J1 = self.ridge, poses.last_known[:, None, None, :, None]
        if self.of_poses is not None:
            scale_m = torch.where(known_B11J1 > 0, ridge.moved_scale, ridge.position_scale)
            return ridge(poses, num_steps=ridge.num_steps), scale_m
        if self.shape.anchor == "none":
            return ridge.position_center[None], ridge.position_scale[None]
        return poses.last_pose_m[:, None, None] + ridge.moved_center, ridge.moved_scale[None]


class PoseTerms(nn.Module):
    """The part of a head's hidden states that the observed poses and the step's number make."""

    def __init__(self, ridge: PoseRidge, *, width: int) -> None:
        super().__init__()
        self.step_embedding = nn.Parameter(torch.zeros(ridge.num_steps, width))
        self.embed = nn.Linear(ridge.weight.shape[1], width, bias=False)

    def forward(self, inputs: Tensor, steps: Tensor) -> Tensor:
        """Hidden states `(batch, step, width)` of the numbered steps."""
        hidden_BTW: Tensor = self.embed(inputs.flatten(1))[:, None] + self.step_embedding[steps]
        return hidden_BTW
