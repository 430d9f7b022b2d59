"""Which kernel computes a model's self-attention, and where each can train."""

import torch
from torch import nn

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.attention import GridAttention
from thinkjepa.stages.train.predictor_settings import AttentionKernel


def check_kernel(kernel: AttentionKernel, device: torch.device) -> None:
    """Raises StageError for a kernel that cannot train on `device`."""
    if kernel == "flex" and device.type == "cpu":
        raise StageError(
            "--attention-kernel flex trains on a GPU only, FlexAttention has no backward on CPUs: leave it "
            "out (blocks)"
        )


def use_kernel(model: nn.Module, kernel: AttentionKernel) -> None:
    """Let all self-attention of `model` run on this kernel; a model is built with `blocks`."""
    if kernel == "flex":
        from thinkjepa.stages.train.flex_attention import flex_attend  # a third of a second of imports

        for part in model.modules():
            if isinstance(part, GridAttention):
                part.attend = flex_attend
