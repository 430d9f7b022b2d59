"""What a user may choose about the thinker's backend."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from thinkjepa.stages.data.clips import setting

PYTHON_VARIABLE = "THINKJEPA_VLLM_PYTHON"


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """How the thinker runs. Backend and quantisation change the features, the rest rounding at most."""

    PANEL: ClassVar[str] = "vLLM"

    backend: Literal["transformers", "vllm"] = setting(
        "transformers",
        "What runs the thinker: transformers, or vllm in a process of its own (docs/vllm.md).",
        rare=True,
    )
    quantization: str = setting(
        "",
        "How weights are quantised on loading, e.g. fp8; empty: as the model's own files say.",
        rare=True,
    )
    tensor_parallel: int = setting(1, "GPUs that share one copy of the thinker.", rare=True)
    gpu_memory: float = setting(
        0.7,
        "Share of the GPU memory for its weights and states, 0 to 1; the encoder needs the rest.",
        rare=True,
    )
    max_batched_tokens: int = setting(
        0,
        "Tokens of a forward pass; longer prompts go through in chunks; 0: vllm's default.",
        rare=True,
    )
    vllm_python: str = setting(
        "",
        f"The Python that has it; default: ${PYTHON_VARIABLE}, or the one that runs this command.",
        rare=True,
    )
    vllm_timeout: float = setting(
        900.0,
        "Seconds without an answer, to the start or to a batch, after which it is ended.",
        rare=True,
    )
    vllm_restarts: int = setting(
        2, "How often it is started again, or a server asked again, after it died or hung.", rare=True
    )
    vllm_url: str = setting(
        "",
        "A server of `thinkjepa-cache serve-thinker`, e.g. http://gpu7:8000; empty: a process here.",
        rare=True,
    )
    vllm_states: str = setting(
        "",
        "The folder that the server of --vllm-url was given with --states, as seen from here.",
        rare=True,
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
