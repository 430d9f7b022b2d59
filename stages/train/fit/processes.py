"""The processes of a training: their device and precision, and their hold on the run's folder."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from thinkjepa.cache import CacheError
from thinkjepa.cache.disk.lock import WAIT, WriteLock
from thinkjepa.stages.device import choose_device
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.fit.tracking import chosen_tracker
from thinkjepa.stages.train.model.flex_attention import check_kernel
from thinkjepa.stages.train.settings import TrainSettings


def make_accelerator(settings: TrainSettings, out_dir: Path) -> Accelerator:
    """The accelerator of these settings, for the processes that torchrun or `accelerate launch` started.

    Raises StageError for a device that is not available or cannot do what the settings ask for.
    """
    device = choose_device(settings.device)
    if device.index is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise StageError(f"--device {settings.device}: several processes take a GPU each; give cuda")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # accelerate takes the current one
    precision = {"fp32": "no", "bf16": "bf16"}[settings.precision]
    AcceleratorState._reset_state()  # else a second run in one process cannot have another precision
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=precision,
        log_with=chosen_tracker(settings.tracker),
        project_dir=str(out_dir),
    )
    check_kernel(settings.attention_kernel, accelerator.device)
    return accelerator


@contextmanager
def only_writer(
    accelerator: Accelerator, out_dir: Path, *, on_wait: Callable[[str], None] | None
) -> Iterator[None]:
    """Hold the run's folder, by the main process for all. Raises StageError where another run holds it."""
    refusal, refused = "another process writes this run", torch.zeros(1, device=accelerator.device)
    with ExitStack() as held:
        if accelerator.is_main_process:
            try:
                held.enter_context(
                    WriteLock(out_dir, remedy=f"{WAIT}, or choose another --out", on_wait=on_wait)
                )
            except CacheError as error:
                refusal, refused = str(error), refused + 1
        if accelerator.reduce(refused, reduction="sum").item():
            raise StageError(refusal)
        yield
