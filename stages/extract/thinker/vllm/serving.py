"""The command line of a vLLM server that hands a thinker's states out to `--vllm-url`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from thinkjepa.stages.device import choose_device
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.models.runtime import choose_dtype, quiet_transformers
from thinkjepa.stages.extract.models.weights import find_model
from thinkjepa.stages.extract.settings import ModelSettings, VllmSettings
from thinkjepa.stages.extract.thinker.vllm.process import vllm_versions
from thinkjepa.stages.extract.thinker.vllm.server import REQUEST_FILES, SERVED_NAME
from thinkjepa.stages.extract.thinker.vllm.thinker import VllmThinker
from thinkjepa.stages.extract.thinker.vllm.worker import extraction_options

SERVER_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1"}


def prepare_server(
    models: ModelSettings,
    vllm: VllmSettings,
    *,
    device: str,
    states: Path,
    host: str,
    port: int,
    batch_size: int,
) -> list[str]:
    """The command that serves a thinker's states into a folder, which is created, emptied and described.

    Raises StageError where there is no vLLM, or where the folder cannot be written to.
    """
    quiet_transformers()
    chosen = choose_device(device)
    thinker = VllmThinker(
        find_model(models.thinker, revision=models.revision, role="thinker"),
        models,
        replace(vllm, backend="vllm", vllm_url="", vllm_states=""),
        dtype=choose_dtype(models.dtype, chosen),
        device=chosen,
        batch_size=batch_size,
    )
    thinker.load_processor()
    states = states.absolute()
    try:
        states.mkdir(parents=True, exist_ok=True)
        for left in states.glob(REQUEST_FILES):
            left.unlink()
        thinker.served(vllm_versions(vllm.python)).write(states)
    except OSError as error:
        raise StageError(
            f"--states {str(states)!r}: {error.strerror}; name a folder that both machines see"
        ) from error
    options = thinker.engine_options()
    folder = Path(options.pop("model")).absolute()
    options |= {
        "served_model_name": SERVED_NAME,
        "generation_config": "vllm",
        "mm_processor_kwargs": dict(thinker.prompting.options),
        "trust_request_mm_kwargs": True,  # a request brings the times of its frames
        "host": host,
        "port": port,
        **extraction_options(thinker.layers, states),
    }
    program = [str(vllm.python), "-P", "-m", "vllm.entrypoints.cli.main", "serve", str(folder)]
    return [*program, *as_flags(options)]


def run_server(command: Sequence[str]) -> NoReturn:
    """Replace this process by the server: signals, output and exit status are its own."""
    os.execve(command[0], list(command), {**SERVER_ENVIRONMENT, **os.environ})


def as_flags(options: Mapping[str, Any]) -> list[str]:
    """Arguments of vLLM's `LLM` as flags of its command line."""
    flags: list[str] = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return flags
