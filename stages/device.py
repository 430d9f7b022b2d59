"""Where models run: one rule for extraction, training, evaluation and prediction."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from thinkjepa.stages.errors import StageError

if TYPE_CHECKING:
    import torch

DEVICES = "auto, cpu, cuda, cuda:1, mps"

_NAME = re.compile(r"auto|(cpu|cuda|mps|xpu)(:\d+)?")


def check_device_name(text: str) -> None:
    """Raises StageError for what is no name of a device, on this machine or another."""
    if not _NAME.fullmatch(text):
        raise StageError(f"--device {text!r}: give one of {DEVICES}")


def device_name(device: torch.device) -> str:
    """A device as people know it: `cpu`, or a GPU with its name."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def choose_device(text: str) -> torch.device:
    """`auto` is CUDA where there is a GPU. Raises StageError for a device that is not available."""
    import torch

    check_device_name(text)
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        sentence = str(error).strip().partition("\n")[0].partition(". ")[0]  # advice and links follow
        reason = sentence[:120]
        raise StageError(f"--device {text!r} cannot be used here ({reason}): try auto or cpu") from error
    return device
