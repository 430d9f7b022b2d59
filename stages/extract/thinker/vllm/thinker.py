"""The thinker through vLLM: the prompt of the transformers backend, the states of vLLM's engine.

vLLM numbers a model's layers as we do: its auxiliary state k is the residual stream that enters decoder
layer k, DeepStack included, and N is after the last. It does not check the numbers, so we do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from thinkjepa.cache.text import without_passwords
from thinkjepa.stages.data.framing import Framing
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.models.digests import weights_digest
from thinkjepa.stages.extract.models.weights import ModelFolder
from thinkjepa.stages.extract.settings import ModelSettings, VllmSettings
from thinkjepa.stages.extract.thinker.base import Thinker, as_stop_ids
from thinkjepa.stages.extract.thinker.contract import HiddenStates, Prompt, TimedFrames
from thinkjepa.stages.extract.thinker.kept import TOKEN_CAPACITY
from thinkjepa.stages.extract.thinker.prompting import clock_metadata
from thinkjepa.stages.extract.thinker.vllm.engine import Engine, Limits, Request, Response
from thinkjepa.stages.extract.thinker.vllm.process import VllmProcess, vllm_versions
from thinkjepa.stages.extract.thinker.vllm.server import ServedThinker, VllmServer

UNLIKE_TRANSFORMERS = ("qwen2_vl", "qwen2_5_vl")
"""vLLM places the text after their videos elsewhere: equal tokens, other states. Images are alike."""

MOST_IMAGES = 128
"""Images of a prompt at most, where frames go in as images."""


class VllmThinker(Thinker):
    """A thinker that vLLM runs, in a process of ours or on a server."""

    backend = "vllm"
    _engine: Engine | None = None

    def __init__(
        self,
        folder: ModelFolder,
        settings: ModelSettings,
        vllm: VllmSettings,
        *,
        dtype: str,
        device: torch.device,
        batch_size: int,
        view: Framing | None = None,
    ) -> None:
        super().__init__(folder, settings, dtype=dtype, device=device, view=view)
        self.vllm = vllm
        self.batch_size = batch_size
        check_model_type(self.config.model_type, frames_as=settings.frames_as)
        self._versions = self._find_versions()

    @property
    def origin(self) -> dict[str, Any]:
        """As promised, with the quantization, and with vLLM's minor versions, which choose the kernels."""
        shared = super().origin
        minor = {name: ".".join(text.split(".")[:2]) for name, text in self._versions.items()}
        return {
            **shared,
            "quantization": self.vllm.quantization,
            "versions": {**shared["versions"], **minor},
        }

    @property
    def source(self) -> dict[str, Any]:
        """As promised, with vLLM's versions and how it is run."""
        return {
            **super().source,
            **self._versions,
            **({"server": without_passwords(self.vllm.vllm_url)} if self.vllm.vllm_url else {}),
            "tensor_parallel": self.vllm.tensor_parallel,
            "max_batched_tokens": self.vllm.max_batched_tokens,
        }

    def load(self) -> None:
        """Start the engine, or reach the server. Raises StageError where that cannot be done."""
        self.load_processor()
        self._stop_ids = as_stop_ids(GenerationConfig.from_pretrained(self.folder.path).eos_token_id)
        limits = Limits(
            max_new_tokens=self.settings.max_new_tokens,
            stop_ids=tuple(sorted(self._stop_ids)),
            timeout_s=self.vllm.vllm_timeout,
            retries=self.vllm.vllm_restarts,
        )
        if self.vllm.vllm_url:
            self._engine = VllmServer(self.vllm.vllm_url.rstrip("/"), Path(self.vllm.vllm_states), limits)
        else:
            self._engine = VllmProcess(
                self.vllm.python, options=self.engine_options(), layers=self.layers, limits=limits
            )
        self._engine.start()

    def close(self) -> None:
        """End the engine, or remove what is left on the server."""
        if self._engine:
            self._engine.stop()

    def served(self, versions: Mapping[str, str]) -> ServedThinker:
        """The description of a server for this thinker, whose processor has to be loaded."""
        return ServedThinker(
            weights=weights_digest(self.folder),
            layers=self.layers,
            dtype=self.dtype,
            quantization=self.vllm.quantization,
            frames_as="video" if self.prompting.as_video else "images",
            versions=versions,
        )

    def prompt(self, source: TimedFrames) -> Prompt:
        """The frames, and the tokens that vLLM's own processor has to make of them."""
        whole = super().prompt(source)
        return Prompt({"input_ids": whole.inputs["input_ids"]}, whole.layout, source)

    def generate(self, prompts: Sequence[Prompt], *, batch_size: int = 1) -> list[HiddenStates]:
        """As promised. Any lengths share a batch: neighbors change rounding at most."""
        assert self._engine is not None, "load first"
        states: list[HiddenStates] = []
        for start in range(0, len(prompts), batch_size):
            group = prompts[start : start + batch_size]
            responses = self._engine.generate(self.request(group))
            states += [self._checked(*pair) for pair in zip(group, responses, strict=True)]
        return states

    def engine_options(self) -> dict[str, Any]:
        """Arguments of vLLM's `LLM`. Prefix caching is off: hardly two clips begin with the same frame."""
        longest = getattr(self.config.get_text_config(), "max_position_embeddings", TOKEN_CAPACITY + 1)
        as_video = self.prompting.as_video
        options: dict[str, Any] = {
            "model": str(self.folder.path),
            "dtype": self.dtype,
            "seed": 0,
            "max_model_len": min(longest, TOKEN_CAPACITY + 1),
            "max_num_seqs": self.batch_size,
            "tensor_parallel_size": self.vllm.tensor_parallel,
            "gpu_memory_utilization": self.vllm.gpu_memory,
            "enable_prefix_caching": False,
            "enforce_eager": self.device.type == "cpu",
            "mm_processor_cache_gb": 0,
            "limit_mm_per_prompt": {"video": int(as_video), "image": 0 if as_video else MOST_IMAGES},
        }
        if self.vllm.max_batched_tokens:
            options["max_num_batched_tokens"] = self.vllm.max_batched_tokens
        if self.vllm.quantization:
            options["quantization"] = self.vllm.quantization
        return options

    def request(self, prompts: Sequence[Prompt]) -> Request:
        """Frames as chosen, with the clock or the lines of time that the other backend gives them."""
        sources = [prompt.source for prompt in prompts if prompt.source is not None]
        as_video = self.prompting.as_video
        return Request(
            prompts=[self.prompting.text(source) for source in sources],
            contents=[self.prompting.content(source) for source in sources],
            frames=[source.frames.permute(0, 2, 3, 1).contiguous().numpy() for source in sources],
            videos=[clock_metadata(source.times_s) if as_video else None for source in sources],
            processor=self.prompting.options,
        )

    def _find_versions(self) -> Mapping[str, str]:
        """Versions of vLLM and its torch, here or at the server, which must compute the same features."""
        if not self.vllm.vllm_url:
            return vllm_versions(self.vllm.python)
        served = ServedThinker.read(Path(self.vllm.vllm_states))
        self.load_processor()
        served.check(self.served(served.versions))
        return served.versions

    def _checked(self, prompt: Prompt, response: Response) -> HiddenStates:
        """The hidden states of a response. Raises StageError where it does not belong to the prompt."""
        prompt_ids = prompt.inputs["input_ids"][0].tolist()
        ids = (*response.token_ids[: response.prompt_token_count], *response.generated_ids)
        if problem := response_problem(
            response, prompt_ids, layers=len(self.layers), width=self.width, dtype=self.dtype
        ):
            raise StageError(f"vllm's answer does not fit: {problem}; use --backend transformers")
        return self._as_hidden_states(
            response.hidden_SLD.transpose(0, 1), ids, len(prompt_ids), prompt.layout
        )


def response_problem(
    response: Response, prompt_ids: Sequence[int], *, layers: int, width: int, dtype: str
) -> str:
    """Reason not to store a response, or "". Checks shape, dtype and tokens. The cache finds NaN."""
    states = response.hidden_SLD
    shape = (len(prompt_ids) + len(response.generated_ids) - 1, layers, width)
    if tuple(states.shape) != shape or states.dtype != getattr(torch, dtype):
        return f"states are {states.dtype} {tuple(states.shape)}, expected {dtype} {shape}"
    expected = (*prompt_ids, *response.generated_ids[:-1])
    if response.token_ids != expected:
        shared = min(len(response.token_ids), len(expected))
        differing = (i for i in range(shared) if response.token_ids[i] != expected[i])
        first = next(differing, shared)
        return f"token {first} of {len(expected)} differs from the prompt that transformers makes"
    return ""


def check_model_type(model_type: str, *, frames_as: str) -> None:
    """Raise StageError for a model that vLLM is known to run on other positions than transformers."""
    if model_type in UNLIKE_TRANSFORMERS and frames_as != "images":
        raise StageError(
            f"--backend vllm: {model_type} gets other positions behind a video there than in transformers: "
            "give --frames-as images, or --backend transformers"
        )
