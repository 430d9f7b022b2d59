"""What a user may choose about the thinker's backend."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from thinkjepa.stages.data.clips import setting

PYTHON_VARIABLE = "THINKJEPA_VLLM_PYTHON"


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """How the thinker runs. Backend and quantisation change the features, the rest rounding at most."""

    backend: Literal["transformers", "vllm"] = setting(
        "transformers", "What runs the thinker: transformers, or vllm in a process of its own (docs/vllm.md)."
    )
    quantization: str = setting(
        "", "vllm: how weights are quantised on loading, e.g. fp8; empty: as the model's own files say."
    )
    tensor_parallel: int = setting(1, "vllm: GPUs that share one copy of the thinker.")
    gpu_memory: float = setting(
        0.7,
        "vllm: share of the GPU memory for its weights and states, 0 to 1; the encoder needs the rest.",
    )
    max_batched_tokens: int = setting(
        0, "vllm: tokens of a forward pass; longer prompts go through in chunks; 0: vllm's default."
    )
    vllm_python: str = setting(
        "", f"vllm: the Python that has it; default: ${PYTHON_VARIABLE}, or the one that runs this command."
    )
    vllm_timeout: float = setting(
        900.0, "vllm: seconds without an answer, to the start or to a batch, after which it is ended."
    )
    vllm_restarts: int = setting(
        2, "vllm: how often it is started again, or a server asked again, after it died or hung."
    )
    vllm_url: str = setting(
        "",
        "vllm: a server of `thinkjepa-cache serve-thinker`, e.g. http://gpu7:8000; empty: a process here.",
    )
    vllm_states: str = setting(
        "", "vllm: the folder that the server of --vllm-url was given with --states, as seen from here."
    )

    def __post_init__(self) -> None:
        if self.tensor_parallel < 1:
            raise ValueError(f"--tensor-parallel {self.tensor_parallel}: give 1 or more GPUs")
        if not 0 < self.gpu_memory <= 1:
            raise ValueError(f"--gpu-memory {self.gpu_memory}: give a share above 0, at most 1")
        if self.max_batched_tokens < 0:
            raise ValueError(
                f"--max-batched-tokens {self.max_batched_tokens}: give 1 or more, or 0 for the default"
            )
        if not self.vllm_timeout > 0:
            raise ValueError(f"--vllm-timeout {self.vllm_timeout}: give seconds above 0")
        if self.vllm_restarts < 0:
            raise ValueError(f"--vllm-restarts {self.vllm_restarts}: give 0 or more")
        if self.backend == "transformers":
            for name in ("quantization", "vllm_url"):
                if value := getattr(self, name):
                    raise ValueError(f"--{name.replace('_', '-')} {value} needs --backend vllm")
        if self.vllm_url and not self.vllm_url.startswith(("http://", "https://")):
            raise ValueError(f"--vllm-url {self.vllm_url!r}: give http://HOST:PORT")
        if bool(self.vllm_url) != bool(self.vllm_states):
            raise ValueError(
                "give --vllm-url and --vllm-states together: a server hands states over in that folder"
            )

    @property
    def python(self) -> Path:
        """The interpreter that runs the engine."""
        return Path(self.vllm_python or os.environ.get(PYTHON_VARIABLE) or sys.executable)
