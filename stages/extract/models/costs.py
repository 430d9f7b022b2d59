"""What a forward costs, from a model's configuration alone: parameters, FLOPs, values held in memory.

The model's classes are built on the meta device, so that the shapes are exact and no weight exists.
FLOPs follow the usual count (Kaplan et al., arXiv 2001.08361, table 1; `torch.utils.flop_counter` agrees): a
weight matrix costs 2 FLOPs per weight and token, attention 4 x width per layer and query-key pair (scores
and weighted sum). Causal attention is counted over all pairs, as the counter does. Norms, activations and
embedding lookups are left out.

How many tokens the thinker will read of each clip: its real processor on blank frames of the real size.

Frames of one size become the same number of visual tokens; only the digits of the time stamps differ between
clips, by a token each. So one clip stands for all of its size: the one in the middle by time.
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
from thinkjepa.stages.data.plan import PlannedVideo
from thinkjepa.stages.extract.encoder.base import VideoEncoder
from thinkjepa.stages.extract.models.weights import explained_load_errors
from thinkjepa.stages.extract.thinker.contract import TOKEN_CAPACITY, Scene
from thinkjepa.stages.extract.thinker.hooks import HookedThinker, find_decoder_layers, shrink

ACTIVATION_WIDTHS = 24
"""Values of model width alive at once per token of a forward: V-JEPA 2 ViT-L raised the process by 22."""


@dataclass(frozen=True, slots=True)
class Attention:
    """A stack of attention layers; `width` is heads x head dimension."""

    num_layers: int
    width: int

    def flops(self, queries: int, keys: int) -> int:
        return 4 * self.num_layers * self.width * queries * keys


@dataclass(frozen=True, slots=True)
class PromptSize:
    """What the thinker's processor makes of a clip. Patches attend within their own frame only."""

    prompt_tokens: int
    visual_tokens: int
    num_patches: int
    patches_per_frame: int
    pixel_bytes: int


@dataclass(frozen=True, slots=True)
class ThinkerCosts:
    """Weights count what a token (tower: a patch, merger: a visual token) is multiplied with."""

    parameters: int
    decoder_weights: int
    head_weights: int
    tower_weights: int
    merger_weights: int
    decoder: Attention
    tower: Attention
    key_value_width: int

    def flops(self, size: PromptSize, *, new_tokens: int) -> int:
        """One clip: the vision tower, the prompt, and `new_tokens` generated; the last is not read again."""
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
        """Keys and values held for a clip while it generates."""
        return 2 * self.decoder.num_layers * self.key_value_width * num_tokens

    def live_values(self, size: PromptSize) -> int:
        """Activations of a clip at the widest point: the tower over patches or the decoder over tokens."""
        return ACTIVATION_WIDTHS * max(
            self.decoder.width * size.prompt_tokens, self.tower.width * size.num_patches
        )


@dataclass(frozen=True, slots=True)
class EncoderCosts:
    """`weights` are those of the encoder, `parameters` those of the whole model: its predictor is loaded."""

    parameters: int
    weights: int
    attention: Attention

    def flops(self, num_tokens: int) -> int:
        """One window of `num_tokens` latent tokens."""
        return 2 * self.weights * num_tokens + self.attention.flops(num_tokens, num_tokens)

    def live_values(self, num_tokens: int) -> int:
        return ACTIVATION_WIDTHS * self.attention.width * num_tokens


def thinker_costs(thinker: HookedThinker) -> ThinkerCosts:
    """Counted from the configuration. Raises StageError for a model that transformers cannot build."""
    with explained_load_errors(thinker.folder, "thinker"):
        config = AutoConfig.from_pretrained(thinker.folder.path)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
        layers = find_decoder_layers(model, thinker.num_layers, thinker.folder)
        text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    heads = int(text.num_attention_heads)
    head_dim = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    in_decoder = {id(module) for module in model.get_decoder().modules()} | {
        id(model.get_output_embeddings())
    }
    seeing = [(name, module) for name, module in model.named_modules() if id(module) not in in_decoder]
    return ThinkerCosts(
        parameters=count_parameters(model),
        decoder_weights=multiplied_weights(layers.named_modules(), experts_used=_experts_used(text)),
        head_weights=model.get_output_embeddings().weight.numel(),
        tower_weights=multiplied_weights(item for item in seeing if not _merges(item[0])),
        merger_weights=multiplied_weights(item for item in seeing if _merges(item[0])),
        decoder=Attention(thinker.num_layers, heads * head_dim),
        tower=Attention(
            _first_number(vision, "depth", "num_hidden_layers"),
            _first_number(vision, "hidden_size", "embed_dim"),
        ),
        key_value_width=int(getattr(text, "num_key_value_heads", None) or heads) * head_dim,
    )


def encoder_costs(encoder: VideoEncoder) -> EncoderCosts:
    """Counted from the configuration. Raises StageError for a model that transformers cannot build."""
    with explained_load_errors(encoder.folder, "encoder"), torch.device("meta"):
        model = encoder.build()
    return EncoderCosts(
        parameters=count_parameters(model),
        weights=multiplied_weights(encoder.trunk(model).named_modules()),
        attention=Attention(int(encoder.config.num_hidden_layers), encoder.width),
    )


def count_parameters(model: nn.Module) -> int:
    """Values of a model, tied ones once."""
    return sum(weight.numel() for weight in model.parameters())


def multiplied_weights(modules: Iterable[tuple[str, nn.Module]], *, experts_used: float = 1.0) -> int:
    """Weights that a token is multiplied with: matrices and kernels, of experts the share that is used."""
    total = 0.0
    for name, module in modules:
        if isinstance(module, nn.Embedding):
            continue
        matrices = [weight.numel() for weight in module.parameters(recurse=False) if weight.ndim > 1]
        total += sum(matrices) * (experts_used if "experts" in name.split(".") else 1.0)
    return math.ceil(total)


def prompt_size(thinker: HookedThinker, inputs: Any) -> PromptSize:
    """Sizes of one clip's inputs as `HookedThinker.prepare` gives them."""
    pixels = inputs["pixel_values_videos" if "pixel_values_videos" in inputs else "pixel_values"]
    ids = inputs["input_ids"][0].tolist()
    visual = sum(token in thinker.visual_ids for token in ids)
    grids = [inputs[name] for name in ("video_grid_thw", "image_grid_thw") if name in inputs]
    if grids:
        num_patches = sum(frames * height * width for frames, height, width in grids[0].tolist())
        per_frame = max(height * width for _, height, width in grids[0].tolist())
    else:  # whole frames `(clip, frame, 3, height, width)`
        frames, _, height, width = pixels.shape[1:]
        per_frame = (height // thinker.patch_px) * (width // thinker.patch_px)
        num_patches = frames * per_frame
    return PromptSize(len(ids), visual, num_patches, per_frame, pixels.nbytes)


def _merges(name: str) -> bool:
    """Whether a module works on visual tokens, several patches each, rather than on patches."""
    return any(word in name for word in ("merger", "projector"))


def _experts_used(text: Any) -> float:
    used, there = getattr(text, "num_experts_per_tok", None), getattr(text, "num_experts", None)
    return used / there if used and there else 1.0


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

    @classmethod
    def count(
        cls, clips: Sequence[ClipRow], videos: Mapping[str, PlannedVideo], thinker: HookedThinker
    ) -> PromptSizes:
        """Run the processor once per frame size that the thinker's frames have after scaling down."""
        groups: dict[FrameSize, list[ClipRow]] = defaultdict(list)
        for clip in clips:
            groups[videos[clip.video_digest].info.size_px].append(clip)
        by_seen: dict[FrameSize, PromptSize | str] = {}
        for size, group in groups.items():
            seen = seen_size(size, thinker.settings.thinker_size)
            if seen not in by_seen:
                by_seen[seen] = _processed(seen, group, thinker)
        found = {size: by_seen[seen_size(size, thinker.settings.thinker_size)] for size in groups}
        return cls(
            new_tokens=thinker.settings.max_new_tokens,
            videos=videos,
            sizes={size: result for size, result in found.items() if isinstance(result, PromptSize)},
            refused={size: result for size, result in found.items() if isinstance(result, str)},
        )

    def of(self, clip: ClipRow) -> PromptSize | None:
        """None where the processor refuses the clip's frames."""
        return self.sizes.get(self._frame_size(clip))

    def num_tokens(self, size: PromptSize) -> int:
        """States of a clip: the prompt and all generated tokens but the last. Answers may end earlier."""
        return size.prompt_tokens + self.new_tokens - 1

    def fits(self, size: PromptSize) -> bool:
        """Whether the cache can hold a clip of this size."""
        return self.num_tokens(size) <= TOKEN_CAPACITY

    def problems(self, clips: Sequence[ClipRow]) -> list[str]:
        """Which clips will have no thinker features, why, and what helps; one line per frame size."""
        lines = []
        for size, number in sorted(Counter(map(self._frame_size, clips)).items()):
            who = f"{number} clips of {size[0]}x{size[1]} px will fail:"
            if size in self.refused:
                lines.append(f"{who} the thinker's processor says {self.refused[size]}")
            elif not self.fits(self.sizes[size]):
                lines.append(
                    f"{who} {self.num_tokens(self.sizes[size])} thinker tokens, the cache holds at most "
                    f"{TOKEN_CAPACITY}; lower --thinker-size or --thinker-frames"
                )
        return lines

    def _frame_size(self, clip: ClipRow) -> FrameSize:
        return self.videos[clip.video_digest].info.size_px


def seen_size(size: FrameSize, short_side_px: int) -> FrameSize:
    """The size that frames have after scaling down."""
    width, height = size
    seen = shrink(np.zeros((1, height, width, 3), dtype=np.uint8), short_side_px=short_side_px)
    return int(seen.shape[-1]), int(seen.shape[-2])


def _processed(seen: FrameSize, group: Sequence[ClipRow], thinker: HookedThinker) -> PromptSize | str:
    """The size of the middle clip's prompt, or why the processor refuses such frames."""
    clip = sorted(group, key=lambda clip: clip.split_time_s)[len(group) // 2]
    width, height = seen
    blank = torch.zeros((len(clip.thinker_frames), 3, height, width), dtype=torch.uint8)
    try:
        return prompt_size(thinker, thinker.prepare(Scene(blank, clip.thinker_times_s)).inputs)
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
