"""The settings of stage one. One field: type, default, unit, one sentence."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from thinkjepa.cache.text import without_passwords
from thinkjepa.stages.device import DEVICES, check_device_name
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.settings import DEFAULT_OR_MORE, Settings, setting

EncoderFit = Literal["crop", "letterbox"]

GPU_BATCH = 8

PAPER_LEVELS = 8
"""Thinker layers of the paper (arXiv 2603.22281)."""


@dataclass(frozen=True)
class ModelSettings(Settings):
    """The two frozen models and their inputs. All of it determines the features."""

    PANEL: ClassVar[str] = "Models"

    thinker: str = setting(
        "Qwen/Qwen3-VL-2B-Thinking", "Vision-language model: a hub name or a local folder."
    )
    revision: str = setting("main", "Branch, tag or commit of the thinker on the hub.", rare=True)
    layers: str = setting(
        "auto",
        "Thinker layers to keep, e.g. 1,5,9: k is the residual stream that enters decoder layer k "
        "(0: embeddings, number of layers: after the last); auto: eight spread as in the paper.",
    )
    prompt: str = setting("Describe this video.", "What the thinker is asked about the frames.")
    max_new_tokens: int = setting(
        16, "Tokens the thinker generates, greedily; N tokens give N - 1 states.", ge=1
    )
    thinker_size: int = setting(
        256,
        "Short side of the thinker's frames, px; larger are scaled down.",
        rare=True,
        ge=32,
        allowed="32 pixels or more",
    )
    frames_as: Literal["auto", "video", "images"] = setting(
        "auto",
        "How the thinker is shown its frames: as one video, as images with a line of time each, or auto: as "
        "a video where it takes one.",
        rare=True,
    )
    encoder: str = setting(
        "facebook/vjepa2-vitl-fpc64-256",
        "Video encoder, V-JEPA 2 or DINOv2 (latents of single frames): a hub name or a local folder.",
    )
    encoder_revision: str = setting("main", "Branch, tag or commit of the encoder on the hub.", rare=True)
    encoder_fit: EncoderFit = setting(
        "crop",
        "Frames for the encoder: crop, the middle square (of 16:9 half), or letterbox, all, padded.",
        rare=True,
    )
    thinker_view: Literal["full", "encoder"] = setting(
        "full",
        "Frames for the thinker: full, or encoder, what it sees, a control.",
        rare=True,
    )
    keep_history: bool = setting(
        False,
        "Also encode the thinker's frames, for --guidance-source history.",
        rare=True,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "Precision of the models and of the stored features; auto: bfloat16 on a GPU, float32 on CPU."
    )
    fp8: Literal["none", "tokens", "latents", "all"] = setting(
        "none",
        "What is stored in 8 bits with a scale per token: half the disk, and an error that thinkjepa-cache "
        "info shows.",
        rare=True,
    )

    keep: str = setting(
        "pooled,slots,text",
        "What is stored of the thinker: pooled (means, always), slots (each place over time, each frame over "
        "its places), text (tokens behind the frames), tokens (all); none: pooled alone.",
    )
    slot_segments: int = setting(
        1, "Segments of the history over each of which slots average a place.", rare=True, ge=1
    )

    def __post_init__(self) -> None:
        parse_keep(self.keep)
        if not self.prompt.strip():
            raise ValueError("--prompt is empty: say what the thinker shall do with the frames")


KEPT = ("pooled", "slots", "text", "tokens")
"""What `--keep` may name."""


def parse_keep(text: str) -> frozenset[str]:
    """The names of `--keep`, with `pooled`, which is always kept. Raises ValueError for another name."""
    names = [name for name in text.replace(",", " ").split() if name]
    if names == ["none"]:
        return frozenset({"pooled"})
    if not names or not set(names) <= set(KEPT):
        raise ValueError(f"--keep {text!r}: give some of {', '.join(KEPT)}, comma-separated, or none")
    return frozenset({"pooled", *names})


@dataclass(frozen=True)
class ExecutionSettings(Settings):
    """Settings of the work itself. They change no more than the rounding of results (device, batch size)."""

    PANEL: ClassVar[str] = "Execution"

    device: str = setting("auto", f"Where the models run: {DEVICES}.")
    batch_size: int = setting(
        0,
        "Clips that go through the models together; 0: 8 on a GPU, 1 on CPU.",
        ge=0,
        allowed=DEFAULT_OR_MORE,
    )
    decode_timeout: float = setting(
        60.0,
        "Seconds without an answer after which the decoder is ended, up to a day.",
        rare=True,
        gt=0,
        le=86_400,
        allowed="seconds above 0, up to 86400",
    )
    max_failures: str = setting(
        "",
        "Failed videos that are accepted, a number or a percentage such as 5%, rounded up: one more ends the "
        "run early. Empty: none ends it, and its exit status is 3 if any failed.",
    )
    retry_failed: bool = setting(
        False, "Try clips again that failed in an earlier run; else list them again."
    )
    ignore_space: bool = setting(
        False, "Start even where the features that are missing will not fit on the disk.", rare=True
    )
    shard_mb: int = setting(
        512,
        "Megabytes of features per shard file, at most, or one batch.",
        rare=True,
        ge=1,
    )
    workers: int = setting(
        1,
        "Processes that extract at once, each with a copy of the models, on a GPU of its own if there is.",
        ge=1,
    )
    scheduler: str = setting(
        "",
        "Address of a dask scheduler whose workers extract, e.g. tcp://host:8786; empty: --workers here.",
        rare=True,
    )
    threads: int = setting(
        0,
        "Threads of the models on the CPU, of each worker's where there are several; 0: the cores that this "
        "process may use (its affinity, its container's quota, OMP_NUM_THREADS), divided by --workers.",
        ge=0,
        allowed=DEFAULT_OR_MORE,
    )
    clip_retries: int = setting(
        2,
        "How often a worker may die over the same clip before the clip is recorded as failed.",
        rare=True,
        ge=1,
    )
    wait: bool = setting(False, "Wait while another process writes this cache; else end with its name.")
    codec: Literal["none", "zstd", "blosc"] = setting(
        "none",
        "Compression of new sets; float features shrink by about a tenth and read many times slower.",
        rare=True,
    )

    def __post_init__(self) -> None:
        check_device_name(self.device)
        if self.workers > 1 and self.scheduler:
            raise ValueError(
                "--workers starts workers, --scheduler uses those of a cluster: give one of them"
            )
        self.failure_limit(num_videos=1)

    @property
    def on_cluster(self) -> bool:
        """True if other processes do the work."""
        return self.workers > 1 or bool(self.scheduler)

    def failure_limit(self, *, num_videos: int) -> int | None:
        """Failed videos beyond which a run ends early; None: it never does. Raises ValueError."""
        return allowed_failures(self.max_failures, num_videos=num_videos) if self.max_failures else None

    def clips_per_batch(self, device_type: str) -> int:
        """The batch size, the default one made definite for `cpu`, `cuda` and so on."""
        return self.batch_size or (1 if device_type == "cpu" else GPU_BATCH)


def allowed_failures(text: str, *, num_videos: int) -> int:
    """Number of the `num_videos` that may fail. Raises ValueError.

    `text` is a count, or a percentage. That is rounded up, so that small folders may have a broken video.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) if percent else int(number)
    except ValueError:
        value = -1
    if not value >= 0 or (percent and value > 100):
        raise ValueError(f"--max-failures {text!r}: give a count such as 3 or a percentage such as 5%")
    return math.ceil(round(num_videos * value / 100, 9)) if percent else int(value)


def spread_layers(num_layers: int) -> tuple[int, ...]:
    """The paper's choice for any depth: 28 layers give 1 5 9 13 17 21 25 28 in our numbering.

    The published 0 4 8 .. 24 27 are layer outputs, so each is one more here.
    """
    stride = max(1, -(-(num_layers - 1) // (PAPER_LEVELS - 1)))
    outputs = sorted({min(level * stride, num_layers - 1) for level in range(PAPER_LEVELS)})
    return tuple(output + 1 for output in outputs)


def parse_layers(text: str, *, num_layers: int) -> tuple[int, ...]:
    """Layers in increasing order. Raises StageError for one outside 0..num_layers."""
    if text.strip() == "auto":
        return spread_layers(num_layers)
    try:
        layers = [int(part) for part in text.replace(" ", ",").split(",") if part]
    except ValueError:
        layers = []
    if not layers or len(set(layers)) != len(layers):
        raise StageError(f"--layers {text!r}: give different numbers such as 1,5,9, or auto")
    for layer in layers:
        if not 0 <= layer <= num_layers:
            raise StageError(
                f"--layers {text!r}: layer {layer} is out of range, the thinker has {num_layers} layers: "
                f"give numbers from 0 (embeddings) to {num_layers} (after the last layer)"
            )
    return tuple(sorted(layers))


PYTHON_VARIABLE = "THINKJEPA_VLLM_PYTHON"


@dataclass(frozen=True)
class VllmSettings(Settings):
    """Settings of the thinker's backend.

    Backend and quantization change the features, the rest changes rounding at most.
    """

    PANEL: ClassVar[str] = "vLLM"

    backend: Literal["transformers", "vllm"] = setting(
        "transformers",
        "What runs the thinker: transformers, or vllm in a process of its own (docs/vllm.md).",
        rare=True,
    )
    quantization: str = setting(
        "",
        "Quantization of weights on loading, e.g. fp8; empty: as the files say.",
        rare=True,
    )
    tensor_parallel: int = setting(
        1, "GPUs that share one copy of the thinker.", rare=True, ge=1, allowed="1 or more GPUs"
    )
    gpu_memory: float = setting(
        0.7,
        "Share of the GPU memory for it, 0 to 1; the encoder needs the rest.",
        rare=True,
        gt=0,
        le=1,
        allowed="a share above 0, at most 1",
    )
    max_batched_tokens: int = setting(
        0,
        "Tokens of a forward; longer prompts go in chunks; 0: vllm's default.",
        rare=True,
        ge=0,
        allowed=DEFAULT_OR_MORE,
    )
    vllm_python: str = setting(
        "",
        f"The Python that has it; default: ${PYTHON_VARIABLE}, or the one that runs this command.",
        rare=True,
    )
    vllm_timeout: float = setting(
        900.0,
        "Seconds without an answer after which it is ended.",
        rare=True,
        gt=0,
        allowed="seconds above 0",
    )
    vllm_restarts: int = setting(
        2, "Restarts, or retries of a server, after it died or hung.", rare=True, ge=0
    )
    vllm_url: str = setting(
        "",
        "A server of `thinkjepa-cache serve-thinker`, e.g. http://gpu7:8000; empty: a process here.",
        rare=True,
    )
    vllm_states: str = setting(
        "",
        "Folder of --states of the server of --vllm-url, as seen from here.",
        rare=True,
    )

    def __post_init__(self) -> None:
        if self.backend == "transformers":
            for name in ("quantization", "vllm_url"):
                if value := getattr(self, name):
                    shown = without_passwords(value)
                    raise ValueError(f"--{name.replace('_', '-')} {shown} needs --backend vllm")
        if self.vllm_url and not self.vllm_url.startswith(("http://", "https://")):
            raise ValueError(f"--vllm-url {without_passwords(self.vllm_url)!r}: give http://HOST:PORT")
        if bool(self.vllm_url) != bool(self.vllm_states):
            raise ValueError(
                "give --vllm-url and --vllm-states together: a server hands states over in that folder"
            )

    @property
    def python(self) -> Path:
        """The interpreter that runs the engine."""
        return Path(self.vllm_python or os.environ.get(PYTHON_VARIABLE) or sys.executable)
