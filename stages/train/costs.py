"""What a training run would take, from the sizes of its features alone."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from thinkjepa.stages.train.data.features import Features
from thinkjepa.stages.train.model.attention import Span
from thinkjepa.stages.train.model.config import ModelShape, ThinkerShape
from thinkjepa.stages.train.model.forecast import NUM_QUERIES, build_model
from thinkjepa.stages.train.model.trunk import MLP_RATIO, Trunk
from thinkjepa.stages.train.settings import TrainSettings

PARTS = ("predictor", "pyramid", "head")

STEP_TO_FORWARD = 3
"""FLOPs of forward and backward, in forwards: each product of the one gives two of the other."""

SAVED_PER_TOKEN = 14
"""Numbers per channel that a block keeps of a token for the backward (counted with saved-tensor hooks)."""

SAVED_BY_GUIDANCE = {"film": 1, "adaln": 6, "cross": 1}
"""The same of what modulates a block's tokens."""

STATE_PER_PARAMETER_BYTES = 16
"""A float32 weight, its gradient and AdamW's two moments."""

COPY_PER_PARAMETER_BYTES = 2
"""The copy of a weight that autocast to bf16 makes and keeps until the backward."""

SAVED_IN_FP32_PER_TOKEN = 4
"""Of the saved numbers per channel, those that stay in float32 under bf16 where guidance, whose gates are
float32, or learned queries make the stream between the blocks float32 (measured with torch's profiler)."""


@dataclass(frozen=True, slots=True)
class TrainingCosts:
    """Costs of a run; `memory_bytes` is what weights, optimiser and one forward's clips take on a device."""

    parameters: dict[str, int]
    tokens_per_clip: int
    flops_per_clip: int
    """Forward and backward."""
    memory_bytes: int
    read_bytes_per_clip: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def training_costs(features: Features, shape: ModelShape, settings: TrainSettings) -> TrainingCosts:
    """Costs of training a model of `shape` on `features`; nothing is trained, no feature is read."""
    model = build_model(shape, seed=0)
    parameters: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = next((part for part in PARTS if part in name.split(".")), "forecaster")
        parameters[part] = parameters.get(part, 0) + parameter.numel()
    num_tokens = thinker_tokens(features)
    total = sum(parameters.values())
    with_context = settings.context_weight > 0 and shape.variant != "vlm"
    return TrainingCosts(
        parameters={**parameters, "total": total},
        tokens_per_clip=sequence_tokens(shape),
        flops_per_clip=STEP_TO_FORWARD
        * forward_flops(shape, num_tokens, with_context=with_context, windows=settings.rollout_windows),
        memory_bytes=memory_bytes(shape, settings, num_tokens, num_parameters=total),
        read_bytes_per_clip=read_bytes_per_clip(features, num_tokens),
    )


def memory_bytes(
    shape: ModelShape, settings: TrainSettings, num_thinker_tokens: int, *, num_parameters: int
) -> int:
    """What weights, their gradients, the optimiser and the clips of one forward take on a device."""
    passes = forecaster_passes(shape, settings.rollout_windows)
    activations = passes * saved_bytes_per_clip(shape, num_thinker_tokens)
    state = STATE_PER_PARAMETER_BYTES
    if settings.precision == "bf16":
        state += COPY_PER_PARAMETER_BYTES
        activations //= 2
        if shape.variant != "jepa":
            activations += passes * (
                2 * SAVED_IN_FP32_PER_TOKEN * shape.trunk.depth * sequence_tokens(shape) * shape.trunk.width
            )
    return state * num_parameters + settings.clips_per_forward * activations


def sequence_tokens(shape: ModelShape) -> int:
    """Tokens that go through the trunk for a clip."""
    return _context_tokens(shape) + shape.grid.future_steps * shape.grid.tokens_per_step


def forecaster_passes(shape: ModelShape, windows: int) -> int:
    """How often the forecaster runs for so many windows: `vlm` holds its last step behind the first."""
    return 1 if shape.variant == "vlm" else windows


def forward_flops(
    shape: ModelShape, num_thinker_tokens: int, *, with_context: bool = False, windows: int = 1
) -> int:
    """FLOPs (two a multiply-add) of the matrix products of one clip's forward over some windows.

    `with_context`: latents are read off the observed steps, too.
    """
    flops = forecaster_passes(shape, windows) * _forecaster_flops(shape, num_thinker_tokens)
    flops += windows * _head_flops(shape)
    if with_context:
        flops += (
            2 * shape.grid.observed_steps * shape.grid.tokens_per_step * shape.trunk.width * shape.grid.dim
        )
    return flops


def _head_flops(shape: ModelShape) -> int:
    """Of the trajectory head: projections of the patches, what its queries read, and its two layers."""
    if (head := shape.head) is None:
        return 0
    grid, width = shape.grid, head.width
    patches = 2 * grid.tokens_per_step * (grid.dim + 2 * width) * width
    read = 4 * NUM_QUERIES * grid.tokens_per_step * width
    outputs = 2 * width * (NUM_QUERIES * width + head.frames_per_step * len(head.joints) * 3)
    return grid.future_steps * (patches + read + outputs)


def _forecaster_flops(shape: ModelShape, num_thinker_tokens: int) -> int:
    width, grid, tokens = shape.trunk.width, shape.grid, sequence_tokens(shape)
    linear = 2 * tokens * (4 + 2 * MLP_RATIO) * width**2
    pairs = sum((span.query_stop - span.query_start) * span.key_stop for span in _spans(shape))
    flops = shape.trunk.depth * (linear + 4 * pairs * width)
    flops += 2 * grid.future_steps * grid.tokens_per_step * width * grid.dim
    if shape.variant != "vlm":
        flops += 2 * grid.observed_steps * grid.tokens_per_step * grid.dim * width
    if shape.variant == "jepa" or shape.thinker is None:
        return flops
    if shape.variant == "thinkjepa" and shape.guidance.kind == "cross":
        return flops + _cross_flops(shape, shape.thinker, num_thinker_tokens)
    flops += 2 * shape.thinker.levels * 2 * shape.thinker.dim * width
    if shape.variant == "vlm":
        crossing = _cross_flops(shape, shape.thinker, num_thinker_tokens) if shape.token_kinds else 0
        return flops + crossing
    parts = 6 if shape.guidance.kind == "adaln" else 2
    return flops + shape.trunk.depth * 2 * (4 + parts) * width * shape.fusion_width


def _cross_flops(shape: ModelShape, thinker: ThinkerShape, num_thinker_tokens: int) -> int:
    width, tokens = shape.trunk.width, sequence_tokens(shape)
    once = 2 * thinker.levels * num_thinker_tokens * thinker.dim * width
    projections = 2 * 2 * (tokens + num_thinker_tokens) * width**2
    return once + shape.trunk.depth * (projections + 4 * tokens * num_thinker_tokens * width)


def saved_bytes_per_clip(shape: ModelShape, num_thinker_tokens: int) -> int:
    """Float32 activations that one clip's backward needs, latents included; an estimate."""
    width, grid, tokens = shape.trunk.width, shape.grid, sequence_tokens(shape)
    guided = shape.variant == "thinkjepa" or bool(shape.token_kinds)
    kept = SAVED_PER_TOKEN + (SAVED_BY_GUIDANCE[shape.guidance.kind] if guided else 0)
    numbers = shape.trunk.depth * kept * tokens * width
    numbers += (grid.observed_steps + 3 * grid.future_steps) * grid.tokens_per_step * grid.dim
    if shape.token_kinds and shape.thinker is not None:
        numbers += shape.trunk.depth * (5 * tokens + 3 * num_thinker_tokens) * width
        numbers += 2 * shape.thinker.levels * num_thinker_tokens * (shape.thinker.dim + width)
    return int(4 * numbers)


def read_bytes_per_clip(features: Features, num_thinker_tokens: int) -> int:
    """Bytes that a batch reads of the cache for each clip."""
    observed, future = features.encoder.arrays["observed"], features.encoder.arrays["future"]
    total = observed.clip_bytes + future.clip_bytes // future.shape[0] * features.windows
    if features.thinker is None:
        return total
    total += features.thinker.arrays["pooled"].clip_bytes
    if features.token_kinds:
        spec = features.thinker.arrays["tokens"]
        levels, _, dim = spec.shape
        total += levels * num_thinker_tokens * dim * spec.torch_dtype.itemsize
        total += features.thinker.arrays["token_kind"].clip_bytes
    return total


def thinker_tokens(features: Features) -> int:
    """Tokens of a clip on average, as the index has them; 0 where tokens are not read."""
    if features.thinker is None or not features.token_kinds:
        return 0
    counts = features.cache.index(features.thinker.name).token_counts
    return round(float(counts.mean())) if len(counts) else 0


def _context_tokens(shape: ModelShape) -> int:
    if shape.variant != "vlm":
        return shape.grid.observed_steps * shape.grid.tokens_per_step
    assert shape.thinker is not None, "vlm has a thinker"
    return 2 * len(shape.guidance.used_levels(shape.thinker.levels))


def _spans(shape: ModelShape) -> tuple[Span, ...]:
    """Who sees whom, as the trunk has it."""
    with torch.device("meta"):
        trunk = Trunk(shape.trunk)
    grid = shape.grid
    if shape.variant == "vlm":
        return trunk.spans(
            num_steps=grid.future_steps,
            tokens_per_step=grid.tokens_per_step,
            prefix_tokens=_context_tokens(shape),
        )
    return trunk.spans(
        num_steps=grid.observed_steps + grid.future_steps, tokens_per_step=grid.tokens_per_step
    )
