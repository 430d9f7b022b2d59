"""The cost of forwards from a model's configuration alone: parameters, FLOPs, values held in memory.

The model's classes are built on the meta device, so that the shapes are exact and no weight exists.
FLOPs follow the usual count (Kaplan et al., arXiv 2001.08361, table 1): a weight matrix costs 2 FLOPs per
weight and token, attention 4 x width per layer and query-key pair (scores and weighted sum). Causal attention
is counted over all pairs, as `torch.utils.flop_counter` does. Norms, activations and embedding lookups are
left out.

The thinker's real processor counts the tokens of its prompts, on blank frames of the real size. Frames of one
size become the same number of visual tokens, and only the digits of time stamps differ between clips, by a
token each. So one clip stands for all of its size: the one in the middle by time.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from thinkjepa.cache import ClipRow
from thinkjepa.cache.shards.write import ENTRIES
from thinkjepa.stages.data.plan import PlannedVideo
from thinkjepa.stages.extract.encoder.base import VideoEncoder
from thinkjepa.stages.extract.models.weights import explained_load_errors
from thinkjepa.stages.extract.thinker.base import Thinker
from thinkjepa.stages.extract.thinker.contract import Prompt, TimedFrames
from thinkjepa.stages.extract.thinker.hooks import find_decoder_layers

ACTIVATION_WIDTHS = 24
"""Values of model width alive at once per token of a forward. V-JEPA 2 ViT-L raised the process by 22."""


@dataclass(frozen=True, slots=True)
class Attention:
    """A stack of attention layers. `width` is heads x head dimension."""

    num_layers: int
    width: int

    def flops(self, queries: int, keys: int) -> int:
        """Scores and weighted sum over all query-key pairs."""
        return 4 * self.num_layers * self.width * queries * keys


@dataclass(frozen=True, slots=True)
class PromptSize:
    """Sizes of a clip's prompt. Patches attend within their own frame only."""

    prompt_tokens: int
    visual_tokens: int
    text_tokens: int
    """After the last visual one."""
    slots: int
    """Means of visual tokens that are kept."""
    num_patches: int
    patches_per_frame: int
    pixel_bytes: int


@dataclass(frozen=True, slots=True)
class ThinkerCosts:
    """Costs of a thinker, from the sizes of its parts.

    Each token goes once through `decoder_weights`, each patch through `tower_weights`, each visual token
    through `merger_weights`, and each generated token through `head_weights`.
    """

    parameters: int
    decoder_weights: int
    head_weights: int
    tower_weights: int
    merger_weights: int
    decoder: Attention
    tower: Attention
    key_value_width: int

    def flops(self, size: PromptSize, *, new_tokens: int) -> int:
        """FLOPs of a clip: vision tower, prompt, and `new_tokens` generated, the last one not read again."""
        steps = new_tokens - 1
        later_keys = sum(size.prompt_tokens + step for step in range(1, new_tokens))
        return (
            2 * self.tower_weights * size.num_patches
            + self.tower.flops(size.num_patches, size.patches_per_frame)
            + 2 * self.merger_weights * size.visual_tokens
            + 2 * self.decoder_weights * (size.prompt_tokens + steps)
            + self.decoder.flops(size.prompt_tokens, size.prompt_tokens)
            + self.decoder.flops(1, later_keys)
            + 2 * self.head_weights * new_tokens
        )

    def cached_values(self, num_tokens: int) -> int:
        """Keys and values held for a clip during its generation."""
        return 2 * self.decoder.num_layers * self.key_value_width * num_tokens

    def live_values(self, size: PromptSize) -> int:
        """Activations of a clip at the widest point: the tower over patches, or the decoder over tokens."""
        return ACTIVATION_WIDTHS * max(
            self.decoder.width * size.prompt_tokens, self.tower.width * size.num_patches
        )


@dataclass(frozen=True, slots=True)
class EncoderCosts:
    """Costs of an encoder. `parameters` are those of the whole model, as its predictor is loaded too."""

    parameters: int
    weights: int
    attention: Attention

    def flops(self, num_tokens: int) -> int:
        """FLOPs of one sequence of `num_tokens` tokens."""
        return 2 * self.weights * num_tokens + self.attention.flops(num_tokens, num_tokens)

    def live_values(self, num_tokens: int) -> int:
        """Activations of a window."""
        return ACTIVATION_WIDTHS * self.attention.width * num_tokens


def thinker_costs(thinker: Thinker) -> ThinkerCosts:
    """Costs from the configuration. Raises StageError for a model that transformers cannot build."""
    with explained_load_errors(thinker.folder, "thinker"):
        config = AutoConfig.from_pretrained(thinker.folder.path, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
        layers = find_decoder_layers(model, thinker.num_layers, thinker.folder)
        text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    heads = int(text.num_attention_heads)
    head_dim = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    in_decoder = {id(module) for module in model.get_decoder().modules()} | {
        id(model.get_output_embeddings())
    }
    visual = [(name, module) for name, module in model.named_modules() if id(module) not in in_decoder]
    return ThinkerCosts(
        parameters=count_parameters(model),
        decoder_weights=multiplied_weights(layers.named_modules(), experts_used=_experts_used(text)),
        head_weights=model.get_output_embeddings().weight.numel(),
        tower_weights=multiplied_weights(item for item in visual if not _merges(item[0])),
        merger_weights=multiplied_weights(item for item in visual if _merges(item[0])),
        decoder=Attention(thinker.num_layers, heads * head_dim),
        tower=Attention(
            _first_number(vision, "depth", "num_hidden_layers"),
            _first_number(vision, "hidden_size", "embed_dim"),
        ),
        key_value_width=int(getattr(text, "num_key_value_heads", None) or heads) * head_dim,
    )


def encoder_costs(encoder: VideoEncoder) -> EncoderCosts:
    """Costs from the configuration. Raises StageError for a model that transformers cannot build."""
    with explained_load_errors(encoder.folder, "encoder"), torch.device("meta"):
        model = encoder.build()
    return EncoderCosts(
        parameters=count_parameters(model),
        weights=multiplied_weights(encoder.trunk(model).named_modules()),
        attention=Attention(int(encoder.config.num_hidden_layers), encoder.width),
    )


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, tied ones once."""
    return sum(weight.numel() for weight in model.parameters())


def multiplied_weights(modules: Iterable[tuple[str, nn.Module]], *, experts_used: float = 1.0) -> int:
    """Weights that multiply a token: matrices and kernels, of experts the share that is used."""
    total = 0.0
    for name, module in modules:
        if isinstance(module, nn.Embedding):
            continue
        matrices = [weight.numel() for weight in module.parameters(recurse=False) if weight.ndim > 1]
        total += sum(matrices) * (experts_used if "experts" in name.split(".") else 1.0)
    return math.ceil(total)


def prompt_size(thinker: Thinker, prompt: Prompt) -> PromptSize:
    """Sizes of one clip's prompt."""
    inputs = prompt.inputs
    pixels = inputs["pixel_values_videos" if "pixel_values_videos" in inputs else "pixel_values"]
    ids = inputs["input_ids"][0].tolist()
    is_visual = [token in thinker.visual_ids for token in ids]
    grids = [inputs[name] for name in ("video_grid_thw", "image_grid_thw") if name in inputs]
    if grids:
        num_patches = sum(frames * height * width for frames, height, width in grids[0].tolist())
        per_frame = max(height * width for _, height, width in grids[0].tolist())
    else:  # whole frames `(frame, 3, height, width)`, of some families behind an axis of clips
        frames, _, height, width = pixels.shape[-4:]
        per_frame = (height // thinker.patch_px) * (width // thinker.patch_px)
        num_patches = frames * per_frame
    return PromptSize(
        prompt_tokens=len(ids),
        visual_tokens=sum(is_visual),
        text_tokens=is_visual[::-1].index(True) if any(is_visual) else len(ids),
        slots=prompt.layout.num_slots(segments) if (segments := thinker.kept.slot_segments) else 0,
        num_patches=num_patches,
        patches_per_frame=per_frame,
        pixel_bytes=pixels.nbytes,
    )


def _merges(name: str) -> bool:
    """True if a module works on visual tokens, several patches each, rather than on patches."""
    return any(word in name for word in ("merger", "projector"))


def _experts_used(text: Any) -> float:
    used, total = getattr(text, "num_experts_per_tok", None), getattr(text, "num_experts", None)
    return used / total if used and total else 1.0


def _first_number(config: Any, *names: str) -> int:
    """The first of these settings that a configuration has, 0 where it has none."""
    return next((int(value) for name in names if (value := getattr(config, name, None))), 0)


FrameSize = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True)
class PromptSizes:
    """Prompt sizes by the frame size of a clip's video."""

    new_tokens: int
    videos: Mapping[str, PlannedVideo]
    """By video digest."""
    sizes: Mapping[FrameSize, PromptSize]
    refused: Mapping[FrameSize, str]
    """Frame sizes that the processor does not take, with its reason."""
    capacities: Mapping[str, int]
    """The most entries of a clip that the cache holds along each ragged axis of the kept arrays."""

    @classmethod
    def count(
        cls, clips: Sequence[ClipRow], videos: Mapping[str, PlannedVideo], thinker: Thinker
    ) -> PromptSizes:
        """Run the processor once per frame size after scaling down."""
        groups: dict[FrameSize, list[ClipRow]] = defaultdict(list)
        for clip in clips:
            groups[videos[clip.video_digest].info.size_px].append(clip)
        by_shrunk: dict[FrameSize, PromptSize | str] = {}
        found: dict[FrameSize, PromptSize | str] = {}
        for size, group in groups.items():
            shrunk = given_size(size, thinker)
            if shrunk not in by_shrunk:
                by_shrunk[shrunk] = _processed(shrunk, group, thinker)
            found[size] = by_shrunk[shrunk]
        arrays = thinker.kept.arrays(thinker.layers, width=thinker.width, dtype=thinker.dtype)
        ragged = [spec for spec in arrays if spec.ragged]
        return cls(
            new_tokens=thinker.settings.max_new_tokens,
            videos=videos,
            sizes={size: result for size, result in found.items() if isinstance(result, PromptSize)},
            refused={size: result for size, result in found.items() if isinstance(result, str)},
            capacities={spec.ragged: spec.shape[spec.dims.index(spec.ragged)] for spec in ragged},
        )

    def of(self, clip: ClipRow) -> PromptSize | None:
        """The size of a clip's prompt, or None where the processor refuses its frames."""
        return self.sizes.get(self._frame_size(clip))

    def num_tokens(self, size: PromptSize) -> int:
        """States of a clip at most: the prompt and all generated tokens but the last."""
        return size.prompt_tokens + self.new_tokens - 1

    def lengths(self, size: PromptSize) -> dict[str, int]:
        """Entries of a clip along each ragged axis, by the axis's name."""
        later = self.new_tokens - 1
        return {"token": self.num_tokens(size), "slot": size.slots, "text": size.text_tokens + later}

    def overlong(self, size: PromptSize) -> list[str]:
        """Ragged axes along which the cache cannot hold a clip of this size."""
        lengths = self.lengths(size)
        return [axis for axis, capacity in self.capacities.items() if lengths[axis] > capacity]

    def problems(self, clips: Sequence[ClipRow]) -> list[str]:
        """One line per frame size whose clips will have no thinker features, with reason and remedy."""
        lines = []
        for size, number in sorted(Counter(map(self._frame_size, clips)).items()):
            who = f"{number} clips of {size[0]}x{size[1]} px will fail:"
            if size in self.refused:
                lines.append(f"{who} the thinker's processor says {self.refused[size]}")
                continue
            lengths = self.lengths(self.sizes[size])
            for axis in self.overlong(self.sizes[size]):
                entries, remedy = ENTRIES[axis]
                lines.append(
                    f"{who} {lengths[axis]} thinker {entries}, the cache holds at most "
                    f"{self.capacities[axis]}; {remedy}"
                )
        return lines

    def _frame_size(self, clip: ClipRow) -> FrameSize:
        return self.videos[clip.video_digest].info.size_px


def given_size(size: FrameSize, thinker: Thinker) -> FrameSize:
    """The size that a thinker's processor is given frames in."""
    width, height = size
    given = thinker.preprocess(np.zeros((1, height, width, 3), dtype=np.uint8))
    return int(given.shape[-1]), int(given.shape[-2])


def _processed(size: FrameSize, group: Sequence[ClipRow], thinker: Thinker) -> PromptSize | str:
    """The size of the middle clip's prompt, or why the processor refuses such frames."""
    clip = sorted(group, key=lambda clip: clip.split_time_s)[len(group) // 2]
    width, height = size
    blank = torch.zeros((len(clip.thinker_frames), 3, height, width), dtype=torch.uint8)
    try:
        return prompt_size(thinker, thinker.prompt(TimedFrames(blank, clip.thinker_times_s)))
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
