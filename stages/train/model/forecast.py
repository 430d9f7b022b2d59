"""A forecast model: latents by a forecaster, joints by the trajectory head, read step by step.

The head reads the joints at a latent step's frames from that step's latents and no other's.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinkjepa.stages.train.data.batches import TokenBatch
from thinkjepa.stages.train.data.poses import ObservedPoses
from thinkjepa.stages.train.data.statistics import JointStatistics
from thinkjepa.stages.train.model.config import HeadShape, LatentGrid, ModelShape
from thinkjepa.stages.train.model.trunk import initialize
from thinkjepa.stages.train.model.variants import Forecaster, build_forecaster
from thinkjepa.stages.train.randomness import named_generator

NUM_QUERIES = 8  # pooled summaries of a step's patches: a hand covers few patches at once


class TrajectoryHead(nn.Module):
    """Joint positions `(batch, step, frame, joint, 3)`, metres, from latents `(batch, step, patch, dim)`.

    Learned queries attend over a step's patches, which carry learned positions, since positions in the
    picture are to be found. With anchor `last_pose` the last observed pose is added.
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
        """Predict in units of the training targets' deviation from their mean."""
        self.center.copy_(statistics.mean)
        self.scale.copy_(statistics.scale)

    def forward(self, latents: Tensor, poses: ObservedPoses) -> Tensor:
        """Joints `(batch, step, frame, joint, 3)`, metres. Only anchor `last_pose` reads `poses`."""
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
            joints_m = joints_m + poses.last_pose_m[:, None, None]
        return joints_m


class Forecast(NamedTuple):
    """Latents `(batch, step, patch, dim)`; joints `(batch, step, frame, joint, 3)`, metres, or None.

    `next_steps` are the latents of the step after each observed one `(batch, observed step, patch, dim)`,
    predicted at the observed step's position, where they were asked for.
    """

    latents: Tensor
    joints_m: Tensor | None
    next_steps: Tensor | None = None


class ForecastModel(nn.Module):
    """A forecaster and its head, which reads predicted latents only."""

    def __init__(self, forecaster: Forecaster, head: TrajectoryHead | None) -> None:
        super().__init__()
        self.forecaster = forecaster
        self.head = head

    def forward(
        self,
        observed: Tensor,
        pooled: Tensor | None,
        poses: ObservedPoses | None,
        tokens: TokenBatch | None = None,
        guided: Tensor | None = None,
        *,
        with_next_steps: bool = False,
        num_steps: int | None = None,
    ) -> Forecast:
        """`observed` `(batch, step, patch, dim)`, `pooled` `(batch, level, stream, dim)` and `poses` are
        None where the model has no thinker or no head. `tokens` are read by a model guided by
        cross-attention, and needed by it. Where `guided` `(batch,)` is 0, the sample's forecast is
        that of the unguided predictor; None guides all. `with_next_steps` asks for `Forecast.next_steps`,
        `num_steps` for so many future steps, rolled out where they are more than a window.
        """
        if not with_next_steps:
            latents: Tensor = self.forecaster(observed, pooled, tokens, guided, num_steps=num_steps)
            return Forecast(latents, self.read_joints(latents, poses))
        steps = self.forecaster.all_steps(observed, pooled, tokens, guided, num_steps=num_steps)
        next_steps, latents = steps[:, : observed.shape[1]], steps[:, observed.shape[1] :]
        return Forecast(latents, self.read_joints(latents, poses), next_steps)

    def read_joints(self, latents: Tensor, poses: ObservedPoses | None) -> Tensor | None:
        """Joints from any future latents. None where the model has no head."""
        if self.head is None:
            return None
        assert poses is not None, "models with a head are always given observed poses"
        joints_m: Tensor = self.head(latents, poses)
        return joints_m


def build_model(shape: ModelShape, *, seed: int) -> ForecastModel:
    """The model that `shape` names, its parameters drawn from `seed` (and nothing else).

    The forecaster's parameters are the same with and without a head.
    """
    forecaster = build_forecaster(shape, seed=seed)
    if shape.head is None:
        return ForecastModel(forecaster, None)
    head = TrajectoryHead(shape.grid, shape.head)
    initialize(head, named_generator(seed, "head"))
    return ForecastModel(forecaster, head)
