"""The thinker through vLLM: the prompt of the transformers backend, the states of vLLM's engine.

vLLM reads a model's layers as we number them: its auxiliary state k is the residual stream that enters
decoder layer k, DeepStack included, and N is after the last. It does not check the numbers: we do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.models.weights import ModelFolder, weights_digest
from thinkjepa.stages.extract.settings import ModelSettings, VllmSettings
from thinkjepa.stages.extract.thinker.contract import TOKEN_CAPACITY, Prompt, Scene, Thought
from thinkjepa.stages.extract.thinker.hooks import HookedThinker
from thinkjepa.stages.extract.thinker.prompting import VideoPrompting, clock_metadata
from thinkjepa.stages.extract.thinker.vllm.engine import (
    Engine,
    EngineSpec,
    Question,
    Reply,
    VllmEngine,
    vllm_versions,
)
from thinkjepa.stages.extract.thinker.vllm.server import ServedThinker, ServerSpec, VllmServer

UNLIKE_TRANSFORMERS = ("qwen2_vl", "qwen2_5_vl")
"""vLLM places the text behind their videos elsewhere: equal tokens, other states. Images are alike."""

MOST_IMAGES = 128
"""Of a prompt, where frames go in as images."""


class VllmThinker(HookedThinker):
    """Describes and prepares as the transformers backend does, and thinks through an engine."""

    def __init__(
        self,
        folder: ModelFolder,
        settings: ModelSettings,
        vllm: VllmSettings,
        *,
        dtype: str,
        device: torch.device,
        batch_size: int,
    ) -> None:
        super().__init__(folder, settings, dtype=dtype, device=device)
        self.vllm = vllm
        self.batch_size = batch_size
        check_model_type(self.config.model_type, frames_as=settings.frames_as)
        self._versions = self._find_versions()
        self._engine: Engine | None = None

    @property
    def origin(self) -> Mapping[str, Any]:
        """As of the other backend, under its own name: the bits differ. Its version chooses the kernels."""
        minor = {name: ".".join(text.split(".")[:2]) for name, text in self._versions.items()}
        inherited = dict(super().origin)
        del inherited["attention"]
        changed = {"backend": "vllm", "quantization": self.vllm.quantization}
        return {**inherited, **changed, "versions": {**inherited["versions"], **minor}}

    @property
    def source(self) -> Mapping[str, Any]:
        return {
            **super().source,
            **self._versions,
            **({"server": self.vllm.vllm_url} if self.vllm.vllm_url else {}),
            "tensor_parallel": self.vllm.tensor_parallel,
            "max_batched_tokens": self.vllm.max_batched_tokens,
        }

    def load(self) -> None:
        """Start the engine, or reach the server. Raises StageError where that cannot be done."""
        self.load_processor()
        self._stop_ids = frozenset(stop_ids(self.folder))
        self._engine = self._server() if self.vllm.vllm_url else self._own_engine()
        self._engine.start()

    def _own_engine(self) -> VllmEngine:
        return VllmEngine(
            EngineSpec(
                python=self.vllm.python,
                options=self.engine_options(),
                layers=self.layers,
                max_new_tokens=self.settings.max_new_tokens,
                stop_ids=tuple(sorted(self._stop_ids)),
                timeout_s=self.vllm.vllm_timeout,
                restarts=self.vllm.vllm_restarts,
            )
        )

    def _server(self) -> VllmServer:
        return VllmServer(
            ServerSpec(
                url=self.vllm.vllm_url.rstrip("/"),
                states=Path(self.vllm.vllm_states),
                max_new_tokens=self.settings.max_new_tokens,
                stop_ids=tuple(sorted(self._stop_ids)),
                timeout_s=self.vllm.vllm_timeout,
                retries=self.vllm.vllm_restarts,
            )
        )

    def _find_versions(self) -> Mapping[str, str]:
        """Of vLLM and its torch, here or at the server, which has to compute what is asked for."""
        if not self.vllm.vllm_url:
            return vllm_versions(self.vllm.python)
        served = ServedThinker.read(Path(self.vllm.vllm_states))
        self.load_processor()
        served.check(self.served(served.versions))
        return served.versions

    def served(self, versions: Mapping[str, str]) -> ServedThinker:
        """This thinker as a server describes it; the processor has to be loaded."""
        return ServedThinker(
            weights=weights_digest(self.folder),
            layers=self.layers,
            dtype=self.dtype,
            quantization=self.vllm.quantization,
            frames_as="video" if isinstance(self.prompting, VideoPrompting) else "images",
            versions=versions,
        )

    def close(self) -> None:
        """End the engine."""
        if self._engine:
            self._engine.stop()

    def prepare(self, scene: Scene) -> Prompt:
        """The scene, and the tokens that vLLM's own processor has to make of it."""
        return Prompt({"input_ids": super().prepare(scene).inputs["input_ids"]}, scene)

    def answer(self, prompts: Sequence[Prompt], *, batch_size: int = 1) -> list[Thought]:
        """One thought per prompt. Any lengths share a batch: neighbours change rounding at most."""
        assert self._engine is not None, "load first"
        thoughts: list[Thought] = []
        for start in range(0, len(prompts), batch_size):
            group = prompts[start : start + batch_size]
            replies = self._engine.ask(self.question([_scene(prompt) for prompt in group]))
            thoughts += [self._checked(*pair) for pair in zip(group, replies, strict=True)]
        return thoughts

    def engine_options(self) -> dict[str, Any]:
        """Arguments of vLLM's `LLM`. Prefix caching is off: hardly two clips begin with the same frame."""
        longest = getattr(self.config.get_text_config(), "max_position_embeddings", TOKEN_CAPACITY + 1)
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
        }
        shown = "video" if isinstance(self.prompting, VideoPrompting) else "image"
        most = {"video": 1, "image": MOST_IMAGES}
        options["limit_mm_per_prompt"] = {kind: most[kind] if kind == shown else 0 for kind in most}
        if self.vllm.max_batched_tokens:
            options["max_num_batched_tokens"] = self.vllm.max_batched_tokens
        if self.vllm.quantization:
            options["quantization"] = self.vllm.quantization
        return options

    def question(self, scenes: Sequence[Scene]) -> Question:
        """Frames as chosen, with the clock or the lines of time that the other backend gives them."""
        as_video = isinstance(self.prompting, VideoPrompting)
        return Question(
            prompts=[self.prompting.text(scene) for scene in scenes],
            contents=[self.prompting.content(scene) for scene in scenes],
            frames=[scene.frames.permute(0, 2, 3, 1).contiguous().numpy() for scene in scenes],
            videos=[clock_metadata(scene) if as_video else None for scene in scenes],
            processor=self.prompting.options,
        )

    def _checked(self, prompt: Prompt, reply: Reply) -> Thought:
        """A reply as a thought. Raises StageError where it is not the answer to our prompt."""
        prompt_ids = prompt.inputs["input_ids"][0].tolist()
        ids = (*reply.token_ids[: reply.prompt_token_count], *reply.generated_ids)
        if problem := reply_problem(
            reply, prompt_ids, layers=len(self.layers), width=self.width, dtype=self.dtype
        ):
            raise StageError(f"vllm's answer does not fit: {problem}; use --backend transformers")
        return self._thought(reply.hidden_SLD.transpose(0, 1), ids, len(prompt_ids))


def _scene(prompt: Prompt) -> Scene:
    assert prompt.scene is not None, "prepared by another thinker"
    return prompt.scene


def reply_problem(reply: Reply, prompt_ids: Sequence[int], *, layers: int, width: int, dtype: str) -> str:
    """Why a reply must not be stored, or an empty string: shape, dtype, tokens. The cache finds NaN."""
    count = len(prompt_ids) + len(reply.generated_ids) - 1
    shape = (count, layers, width)
    if tuple(reply.hidden_SLD.shape) != shape or reply.hidden_SLD.dtype != getattr(torch, dtype):
        return (
            f"states are {reply.hidden_SLD.dtype} {tuple(reply.hidden_SLD.shape)}, expected {dtype} {shape}"
        )
    expected = (*prompt_ids, *reply.generated_ids[:-1])
    if reply.token_ids != expected:
        places = [
            p for p, pair in enumerate(zip(reply.token_ids, expected, strict=False)) if pair[0] != pair[1]
        ]
        where = places[0] if places else min(len(reply.token_ids), len(expected))
        return f"token {where} of {len(expected)} differs from the prompt that transformers makes"
    return ""


def check_model_type(model_type: str, *, frames_as: str) -> None:
    """Raise StageError for a model that vLLM is known to run on other positions than transformers."""
    if model_type in UNLIKE_TRANSFORMERS and frames_as != "images":
        raise StageError(
            f"--backend vllm: {model_type} gets other positions behind a video there than in transformers: "
            "give --frames-as images, or --backend transformers"
        )


def stop_ids(folder: ModelFolder) -> list[int]:
    """Tokens that end an answer, as the model's own files say."""
    ends = GenerationConfig.from_pretrained(folder.path).eos_token_id
    return [ends] if isinstance(ends, int) else list(ends or [])
