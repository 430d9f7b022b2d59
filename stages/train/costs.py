"""Costs of a training run, from the sizes of its features and of its model alone."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from thinkjepa.stages.train.data.features import Features
from thinkjepa.stages.train.data.poses import ObservedPoses, input_frames
from thinkjepa.stages.train.data.states import AXES
from thinkjepa.stages.train.data.tokens import TokenBatch
from thinkjepa.stages.train.model.config import WITHOUT_PREDICTOR, ModelShape
from thinkjepa.stages.train.model.forecast import build_model
from thinkjepa.stages.train.settings import TrainSettings

PARTS = ("predictor", "pyramid", "head", "reader")

STEP_TO_FORWARD = 3
"""FLOPs of forward and backward, in forwards: each product of the one gives two of the other."""

SAVED_PER_TOKEN = 14
"""Numbers per channel that a block keeps of a token for the backward (counted with saved-tensor hooks)."""

SAVED_BY_GUIDANCE = {"film": 1, "adaln": 6, "cross": 1, "spatial": 1}
"""Saved numbers per channel that each kind of guidance adds."""

STATE_PER_PARAMETER_BYTES = 16
"""A float32 weight, its gradient and AdamW's two moments."""

COPY_PER_PARAMETER_BYTES = 2
"""The copy of a weight that autocast to bf16 makes and keeps until the backward."""

SAVED_IN_FP32_PER_TOKEN = 4
"""Saved numbers per channel that stay in float32 under bf16, as the stream between the blocks is float32
(measured with torch's profiler)."""


@dataclass(frozen=True, slots=True)
class TrainingCosts:
    """Costs of a run."""

    parameters: dict[str, int]
    """Parameters by part of the model, and their `total`."""
    tokens_per_clip: int
    """Tokens that go through the trunk."""
    flops_per_clip: int
    """FLOPs of forward and backward."""
    memory_bytes: int
    """Weights, gradients, optimizer and the activations of one forward's clips on a device. An estimate."""
    read_bytes_per_clip: int
    """Bytes that a batch reads of the cache for each clip."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def training_costs(features: Features, shape: ModelShape, settings: TrainSettings) -> TrainingCosts:
    """Costs of training a model of `shape` on `features`. Nothing is trained, no feature is read."""
    parameters, num_tokens = count_parameters(shape), thinker_tokens(features)
    return TrainingCosts(
        parameters=parameters,
        tokens_per_clip=sequence_tokens(shape),
        flops_per_clip=STEP_TO_FORWARD
        * forward_flops(
            shape,
            num_tokens,
            with_next_steps=settings.predicts_next_steps,
            windows=settings.rollout_windows,
        ),
        memory_bytes=memory_bytes(shape, settings, num_tokens, num_parameters=parameters["total"]),
        read_bytes_per_clip=read_bytes_per_clip(features),
    )


def count_parameters(shape: ModelShape) -> dict[str, int]:
    """Parameters of a model by part, and their `total`."""
    with torch.device("meta"):
        model = build_model(shape, seed=0)
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = next((part for part in PARTS if part in name.split(".")), "forecaster")
        counts[part] = counts.get(part, 0) + parameter.numel()
    return {**counts, "total": sum(counts.values())}


def memory_bytes(
    shape: ModelShape, settings: TrainSettings, num_thinker_tokens: int, *, num_parameters: int
) -> int:
    """Memory of weights, gradients, optimizer and the clips of one forward on a device. An estimate."""
    passes = forecaster_passes(shape, settings.rollout_windows)
    activations = passes * saved_bytes_per_clip(shape, num_thinker_tokens)
    state = STATE_PER_PARAMETER_BYTES
    if settings.precision == "bf16":
        state += COPY_PER_PARAMETER_BYTES
        stream = SAVED_IN_FP32_PER_TOKEN * token_blocks(shape) * shape.trunk.width
        activations = activations // 2 + 2 * passes * stream
    return state * num_parameters + settings.clips_per_forward * activations


def sequence_tokens(shape: ModelShape) -> int:
    """Tokens that go through the trunk for a clip, and through the reader of a model that has one."""
    return forecaster_tokens(shape) + reader_tokens(shape)


def forecaster_tokens(shape: ModelShape) -> int:
    """Tokens of the trunk that forecasts latents; none without latents."""
    grid = shape.grid
    if not shape.has_latents:
        return 0
    if shape.variant != "vlm":
        return (grid.observed_steps + grid.future_steps) * grid.tokens_per_step
    return context_tokens(shape) + shape.trained_steps * grid.tokens_per_step


def reader_tokens(shape: ModelShape) -> int:
    """Tokens of the reader that joints are read off; none where they are read off latents."""
    if shape.head is None or not shape.head.reader_depth:
        return 0
    num_frames = len(input_frames(shape.grid.observed_steps * shape.head.frames_per_step))
    return context_tokens(shape) + num_frames + shape.trained_steps


def context_tokens(shape: ModelShape) -> int:
    """Tokens of the thinker's pooled states."""
    if shape.thinker is None:
        return 0
    return len(shape.thinker.streams) * len(shape.guidance.used_levels(shape.thinker.levels))


def token_blocks(shape: ModelShape) -> int:
    """Pairs of a token and a block that it goes through."""
    reader_depth = shape.head.reader_depth if shape.head else 0
    return shape.trunk.depth * forecaster_tokens(shape) + reader_depth * reader_tokens(shape)


def forecaster_passes(shape: ModelShape, windows: int) -> int:
    """Runs of the forecaster for so many windows. One without context runs once, over all that it covers."""
    return 1 if shape.variant in WITHOUT_PREDICTOR else windows


def forward_flops(
    shape: ModelShape, num_thinker_tokens: int, *, with_next_steps: bool = False, windows: int = 1
) -> int:
    """FLOPs (two a multiply-add) of the matrix products of one clip's forward over some windows.

    `with_next_steps` asks for the step after each observed one, too. Torch counts them on the meta device,
    with attention as plain products: it counts none in its fused kernels on a CPU.
    """
    grid, thinker = shape.grid, shape.thinker
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        tokens, pooled = None, None
        if thinker is not None:
            states = torch.empty(1, thinker.levels, num_thinker_tokens, thinker.dim)
            tokens = _tokens(shape, states)
            pooled = torch.empty(1, thinker.levels, len(thinker.streams), thinker.dim)
        build_model(shape, seed=0)(
            torch.empty(1, grid.observed_steps, grid.tokens_per_step, grid.dim)
            if shape.has_latents
            else None,
            pooled,
            _no_poses(shape),
            tokens if shape.reading else None,
            with_next_steps=with_next_steps,
            num_steps=windows * grid.future_steps,
        )
    return int(counter.get_total_flops())


def _tokens(shape: ModelShape, states: Tensor) -> TokenBatch:
    """States of one clip that are read one by one, slots where the model reads slots."""
    number = states.shape[2]
    slots = (number,) if shape.reading.slots else ()
    positions = torch.empty(1, number, 3) if shape.reading.positioned else None
    return TokenBatch(states, (number,), slots, positions)


def _no_poses(shape: ModelShape) -> ObservedPoses | None:
    """Observed poses of one clip, of which nothing is known; None without a head."""
    if shape.head is None:
        return None
    num_frames = shape.grid.observed_steps * shape.head.frames_per_step
    return ObservedPoses.unknown(1, num_frames=num_frames, num_joints=len(shape.head.joints))


def saved_bytes_per_clip(shape: ModelShape, num_thinker_tokens: int) -> int:
    """Float32 activations that one clip's backward needs, latents included. An estimate."""
    width, grid, blocks = shape.trunk.width, shape.grid, token_blocks(shape)
    guided = shape.variant == "thinkjepa" or bool(shape.reading)
    kept = SAVED_PER_TOKEN + (SAVED_BY_GUIDANCE[shape.guidance.kind] if guided else 0)
    numbers = kept * blocks * width
    if shape.has_latents:
        numbers += (grid.observed_steps + 3 * grid.future_steps) * grid.tokens_per_step * grid.dim
    if shape.reading and shape.thinker is not None:
        if shape.guidance.kind == "spatial" and shape.variant != "vlm":
            numbers += shape.trunk.depth * grid.tokens_per_step * (3 * width + 2 * shape.fusion_width)
        else:
            depths = shape.trunk.depth + (shape.head.reader_depth if shape.head else 0)
            numbers += (5 * blocks + 3 * depths * num_thinker_tokens) * width
        numbers += 2 * shape.thinker.levels * num_thinker_tokens * (shape.thinker.dim + width)
    return int(4 * numbers)


def read_bytes_per_clip(features: Features) -> int:
    """Bytes that a batch reads of the cache for each clip."""
    if not features.reads_latents:
        return 0
    observed, future = features.encoder.arrays["observed"], features.encoder.arrays["future"]
    total = observed.clip_bytes + future.clip_bytes // future.shape[0] * features.windows
    if features.thinker is None:
        return total
    total += features.thinker.arrays["pooled"].clip_bytes
    for name in features.reading.arrays:
        spec = features.thinker.arrays[name]
        levels, _, dim = spec.shape
        total += levels * round(mean_length(features, name)) * dim * spec.torch_dtype.itemsize
    if features.reading.kinds:
        total += features.thinker.arrays[f"{AXES[features.reading.array]}_kind"].clip_bytes
    return total


def thinker_tokens(features: Features) -> int:
    """Slots and tokens of a clip on average, as the index has them. 0 where none are read one by one."""
    return round(sum(mean_length(features, name) for name in features.reading.arrays))


def mean_length(features: Features, array: str) -> float:
    """Mean number of a clip's entries in a ragged array."""
    assert features.thinker is not None, "states are of a thinker"
    index = features.cache.index(features.thinker.name)
    counts = index.count_tokens(index.clip_ids.to_pylist(), axis=features.thinker.arrays[array].ragged)
    return float(counts.mean()) if len(counts) else 0.0
