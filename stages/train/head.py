"""The trajectory head: joints at a latent step's frames, read from that step's latents and no other's.

Shape letters: B batch, T latent steps, P patches, D latent dim, W width, Q queries, K frames of a step,
J joints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinkjepa.stages.train.shapes import HeadShape, LatentGrid
from thinkjepa.stages.train.statistics import JointStatistics

NUM_QUERIES = 8  # pooled summaries of a step's patches: a hand is in few places at once


class TrajectoryHead(nn.Module):
    """Joint positions `(batch, step, frame, joint, 3)`, metres, from latents `(batch, step, patch, dim)`.

    Learned queries attend over a step's patches, which carry learned positions: where in the picture
    something is, is what is asked for. With anchor `last_pose` the last observed pose is added.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, grid: LatentGrid, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        self.norm = nn.LayerNorm(grid.dim)
        self.embed = nn.Linear(grid.dim, shape.width)
        self.patch_embedding = nn.Parameter(torch.zeros(grid.tokens_per_step, shape.width))
        self.queries = nn.Parameter(torch.zeros(NUM_QUERIES, shape.width))
        self.key = nn.Linear(shape.width, shape.width)
        self.value = nn.Linear(shape.width, shape.width)
        self.pooled_norm = nn.LayerNorm(NUM_QUERIES * shape.width)
        self.hidden = nn.Linear(NUM_QUERIES * shape.width, shape.width)
        self.hidden_norm = nn.LayerNorm(shape.width)
        self.output = nn.Linear(shape.width, shape.frames_per_step * len(shape.joints) * 3)
        self.register_buffer("center", torch.zeros(len(shape.joints), 3))
        self.register_buffer("scale", torch.ones(len(shape.joints), 1))

    def set_joint_statistics(self, statistics: JointStatistics) -> None:
        """Predict in units of the training targets' spread around their mean."""
        self.center.copy_(statistics.center)
        self.scale.copy_(statistics.scale)

    def forward(self, latents: Tensor, last_pose_m: Tensor) -> Tensor:
        """`last_pose_m` `(batch, joint, 3)` is read with anchor `last_pose` only."""
        patches_BTPW = self.embed(self.norm(latents)) + self.patch_embedding
        queries_BTQW = self.queries.to(patches_BTPW.dtype).expand(*patches_BTPW.shape[:2], -1, -1)
        pooled_BTQW = F.scaled_dot_product_attention(
            queries_BTQW, self.key(patches_BTPW), self.value(patches_BTPW)
        )
        states_BTW = F.gelu(self.hidden(self.pooled_norm(pooled_BTQW.flatten(2))))
        relative = self.output(self.hidden_norm(states_BTW)).float()
        joints_BTKJ3 = relative.view(*relative.shape[:2], self.shape.frames_per_step, -1, 3)
        joints_m: Tensor = self.center + self.scale * joints_BTKJ3
        if self.shape.anchor == "last_pose":
            joints_m = joints_m + last_pose_m[:, None, None]
        return joints_m
