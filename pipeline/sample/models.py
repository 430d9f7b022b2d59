"""Tiny, untrained models of the real classes, to try the pipeline out without a download.

`OUT/thinker` is a Qwen3-VL with DeepStack and `OUT/encoder` a V-JEPA 2, both in the files that
`from_pretrained` reads from a local folder. Their weights are random: features have the structure of real
ones (shapes, token kinds, dependence on every pixel) and none of the meaning.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    VJEPA2Config,
    VJEPA2Model,
    VJEPA2VideoProcessor,
)
from transformers.utils import logging

ENCODER_CROP_PX = 64
NUM_THINKER_LAYERS = 6

# The published tokenizer's order; <think> and </think> are ordinary added tokens there, so text keeps them.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
THINK_TOKENS = ("<think>", "</think>")

# Qwen3-VL's conversation: a vision item is between its two marks. A Thinking model's answer begins with the
# reasoning already opened, which follows here.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for item in message.content -%}
{%- if item.type == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif item.type == 'video' -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif item.type == 'text' -%}
{{- item.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\nOPENING' -}}
{%- endif -%}
"""
THINKING = "<think>\\n"

# One visual token is a 32 px square of two frames: 20 of them hold 160 x 120 px at its own resolution.
PATCH_PX = 16
MERGE_SIZE = 2
MAX_TOKENS_PER_FRAME = 20
MAX_THINKER_FRAMES = 64

README = """\
# {title} for trying the pipeline out

**Untrained: every weight is random (seed {seed}).** The files are those of a real {model_class}, only tiny,
so that the whole pipeline runs in seconds on a laptop. Nothing that these weights compute means anything, and
no result obtained with them says anything about the method.

Written by `thinkjepa-sample models --seed {seed}`.
"""


def write_tiny_models(out: Path, *, seed: int) -> None:
    """Write `out/thinker` and `out/encoder`: the same seed gives the same weights, byte for byte.

    Files of the same names are replaced. The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]), no_progress_bars():
        torch.manual_seed(seed)
        _write_thinker(out / "thinker", seed=seed)
        _write_encoder(out / "encoder", seed=seed)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """A bar for each file of a megabyte is noise."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _write_thinker(folder: Path, *, seed: int) -> None:
    processor = untrained_processor()
    model = Qwen3VLForConditionalGeneration(_thinker_config(processor.tokenizer))
    _depend_on_the_frames(model)
    _speak_printable_ascii(model, processor.tokenizer)
    model.generation_config = generation_config(processor.tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    _write_readme(folder, title="A tiny thinker", model_class="Qwen3-VL Thinking", seed=seed)


def _write_encoder(folder: Path, *, seed: int) -> None:
    VJEPA2Model(_encoder_config()).save_pretrained(folder)
    VJEPA2VideoProcessor(crop_size=ENCODER_CROP_PX).save_pretrained(folder)
    _write_readme(folder, title="A tiny encoder", model_class="V-JEPA 2", seed=seed)


def _write_readme(folder: Path, *, title: str, model_class: str, seed: int) -> None:
    text = README.format(title=title, model_class=model_class, seed=seed)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _thinker_config(tokenizer: Qwen2Tokenizer) -> Qwen3VLConfig:
    """A Qwen3-VL of 6 layers whose first 3 receive DeepStack features, as in the published models.

    `initializer_range` is about 1 / sqrt(width): with the usual 0.02 a model this narrow would hardly change
    its residual stream from one layer to the next.
    """
    text = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": NUM_THINKER_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.12,
    }
    vision = {
        "depth": 4,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "patch_size": PATCH_PX,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1, 2],
        "initializer_range": 0.12,
    }
    return qwen3_vl_config(tokenizer, text=text, vision=vision, rope_theta=5_000_000.0)


def qwen3_vl_config(
    tokenizer: Qwen2Tokenizer, *, text: Mapping[str, Any], vision: Mapping[str, Any], rope_theta: float
) -> Qwen3VLConfig:
    """The configuration of a small Qwen3-VL with heads of 32 dims and the ids of this tokenizer's marks."""
    token_id = tokenizer.convert_tokens_to_ids
    shared_text = {
        "vocab_size": len(tokenizer),
        "head_dim": 32,
        "max_position_embeddings": 8192,
        # Sections of half a head for time, height and width: 24 : 20 : 20 in the published models.
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": rope_theta,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        "pad_token_id": token_id("<|endoftext|>"),
        "bos_token_id": token_id("<|endoftext|>"),
        "eos_token_id": token_id("<|im_end|>"),
    }
    return Qwen3VLConfig(
        text_config={**shared_text, **text},
        vision_config={"spatial_merge_size": MERGE_SIZE, "temporal_patch_size": 2, **vision},
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
        dtype="float32",
    )


def generation_config(tokenizer: Qwen2Tokenizer) -> GenerationConfig:
    """Sampling is on, as in the published files: whoever needs greedy answers has to ask for them."""
    token_id = tokenizer.convert_tokens_to_ids
    return GenerationConfig(
        bos_token_id=token_id("<|endoftext|>"),
        eos_token_id=[token_id("<|im_end|>"), token_id("<|endoftext|>")],
        pad_token_id=token_id("<|endoftext|>"),
        do_sample=True,
        temperature=1.0,
        top_k=20,
        top_p=0.95,
    )


@torch.no_grad()
def _depend_on_the_frames(model: Qwen3VLForConditionalGeneration) -> None:
    """Bring text to the scale of the visual tokens, and let attention choose between tokens.

    Plain random weights attend almost evenly: two clips' answers were the same repeated letter, and the last
    token's final state differed by 4 % between clips. With these two gains it differs by 60 to 80 %.
    """
    language_model = model.model.language_model
    language_model.embed_tokens.weight.mul_(8.0)
    for layer in language_model.layers:
        layer.self_attn.q_norm.weight.mul_(4.0)


@torch.no_grad()
def _speak_printable_ascii(model: Qwen3VLForConditionalGeneration, tokenizer: Qwen2Tokenizer) -> None:
    """Give every other token the logit 0, which never wins against 95 random ones.

    Answers are then readable gibberish of exactly the length asked for: no early end, no stray visual token.
    """
    spoken = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("".join(map(chr, range(0x20, 0x7F)))))
    silent = torch.ones(len(tokenizer), dtype=torch.bool)
    silent[spoken] = False
    model.lm_head.weight[silent] = 0.0


def untrained_processor() -> Qwen3VLProcessor:
    """The processor of the untrained thinker."""
    return thinker_processor(
        qwen_tokenizer(), patch_px=PATCH_PX, max_tokens_per_frame=MAX_TOKENS_PER_FRAME, opening=THINKING
    )


def thinker_processor(
    tokenizer: Qwen2Tokenizer, *, patch_px: int, max_tokens_per_frame: int, opening: str
) -> Qwen3VLProcessor:
    """The processor of a small Qwen3-VL; `opening` begins every answer.

    Image and video processor share mean and std, as inference engines may normalize once for both.
    """
    normalization: dict[str, Any] = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    patches: dict[str, Any] = {"patch_size": patch_px, "temporal_patch_size": 2, "merge_size": MERGE_SIZE}
    token_px = (patch_px * MERGE_SIZE) ** 2
    smallest_px, largest_px = 4 * token_px, max_tokens_per_frame * token_px
    image_px = {"shortest_edge": smallest_px, "longest_edge": largest_px}
    video_px = {"shortest_edge": smallest_px, "longest_edge": MAX_THINKER_FRAMES * largest_px}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=image_px, **patches, **normalization),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(
            size=video_px,
            max_video_tokens=max_tokens_per_frame,
            # Explicit because transformers 5.22 turns it on where it is not set, which changes every feature.
            cap_pixels_per_frame=True,
            **patches,
            **normalization,
        ),
        chat_template=CHAT_TEMPLATE.replace("OPENING", opening),
    )


def qwen_tokenizer(merges: Sequence[tuple[str, str]] = ()) -> Qwen2Tokenizer:
    """Qwen's tokenizer: ids 0-255 are the bytes, what merges make of them and the added tokens follow."""
    symbols = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=list(merges),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=8192,
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in THINK_TOKENS])
    return tokenizer


def _encoder_config() -> VJEPA2Config:
    """A V-JEPA 2 of 4 x 4 patches, with heads of 12 dims: 4 for each of time, height and width.

    Its windows are as long as the published models', so that the default clip settings fit.
    The rotation takes pairs on three axes, so a multiple of 6 leaves nothing over. Its predictor's
    heads keep what the published ones have, 2 dims that no axis rotates: 14 = 3 x 4 + 2, as 32 = 3 x 10 + 2.
    """
    return VJEPA2Config(
        patch_size=PATCH_PX,
        crop_size=ENCODER_CROP_PX,
        frames_per_clip=64,
        tubelet_size=2,
        hidden_size=48,
        num_attention_heads=4,
        num_hidden_layers=4,
        mlp_ratio=2.0,
        initializer_range=0.15,
        num_pooler_layers=1,
        pred_hidden_size=42,
        pred_num_attention_heads=3,
        pred_num_hidden_layers=3,
        pred_mlp_ratio=2.0,
        pred_zero_init_mask_tokens=False,
        dtype="float32",
    )
