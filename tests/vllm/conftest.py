"""A real vLLM, on the CPU, run by the Python that THINKJEPA_VLLM_PYTHON names (`make test-vllm`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from thinkjepa.stages.extract.models.weights import find_model
from thinkjepa.stages.extract.settings import PYTHON_VARIABLE, ModelSettings, VllmSettings
from thinkjepa.stages.extract.thinker.contract import TimedFrames
from thinkjepa.stages.extract.thinker.vllm.thinker import VllmThinker

ALL_LAYERS = "0,1,2,3,4,5,6"

MakeThinker = Callable[..., VllmThinker]
MakeFrames = Callable[..., TimedFrames]


@pytest.fixture(autouse=True, scope="session")
def engine_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """vLLM takes half of the machine's memory for its cache where nobody says how much it may."""
    if not os.environ.get(PYTHON_VARIABLE):
        pytest.fail(f"{PYTHON_VARIABLE} names no Python with vLLM: run `make test-vllm`")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("VLLM_CACHE_ROOT", str(tmp_path_factory.mktemp("vllm")))
        yield


@pytest.fixture(scope="session")
def make_thinker(tiny_models: Path) -> MakeThinker:
    """A thinker that is described, and not loaded."""

    def make(*, layers: str = ALL_LAYERS, batch_size: int = 4, **settings: object) -> VllmThinker:
        return VllmThinker(
            find_model(str(tiny_models / "thinker"), revision="main", role="thinker"),
            ModelSettings(layers=layers, max_new_tokens=6),
            VllmSettings(backend="vllm", **settings),  # type: ignore[arg-type]
            dtype="float32",
            device=torch.device("cpu"),
            batch_size=batch_size,
        )

    return make


@pytest.fixture(scope="session")
def make_frames() -> MakeFrames:
    """Frames of noise. Their times grow to three digits, so that prompts differ in length."""

    def make(
        seed: int, *, height: int = 96, width: int = 128, num_frames: int = 8, step_s: float = 0.37
    ) -> TimedFrames:
        frames = np.random.default_rng(seed).integers(0, 256, (num_frames, 3, height, width), dtype=np.uint8)
        return TimedFrames(torch.from_numpy(frames), [0.1 + step_s * place for place in range(num_frames)])

    return make
