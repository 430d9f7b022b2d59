"""The precision of the frozen models, and what is recorded about where they run."""

from __future__ import annotations

import platform
from typing import Any

import torch
import transformers

from thinkjepa.stages.extract.weights import ModelFolder


def choose_dtype(text: str, device: torch.device) -> str:
    """`auto` is bfloat16 on an accelerator and float32 on the CPU."""
    if text != "auto":
        return text
    return "float32" if device.type == "cpu" else "bfloat16"


def quiet_transformers() -> None:
    """Only errors: its progress bars and hints would break ours."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def library_versions() -> dict[str, str]:
    """Major and minor versions of what computes the features: another one is another origin."""
    return {
        module.__name__: ".".join(str(module.__version__).split(".")[:2]) for module in (torch, transformers)
    }


def run_source(folder: ModelFolder, device: torch.device) -> dict[str, Any]:
    """What a person wants to know of a run: bit-identical features need the same of all of it."""
    return {
        "model": folder.name,
        "revision": folder.revision,
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
