"""Tiny, untrained thinkers of several families, in the files that `from_pretrained` reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    CLIPImageProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from thinkjepa.pipeline.sample import models as sample

NUM_LAYERS = 4
FRAME_PX = 64
IDEFICS_TOKENS = ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<video>")
IDEFICS_TEMPLATE = """\
{%- for message in messages -%}
{{- message.role | capitalize + ':' -}}
{%- for item in message.content -%}
{%- if item.type == 'text' -%}{{- item.text -}}{%- else -%}{{- '<' + item.type + '>' -}}{%- endif -%}
{%- endfor -%}
{{- '<end_of_utterance>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
"""

Part = Any
"""A model or processor of transformers, which has no types."""


def write_family(family: str, folder: Path) -> Path:
    """Write a tiny thinker of a family of `FAMILIES`; the same bytes each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = FAMILIES[family]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _qwen3_vl_moe() -> tuple[Part, Part]:
    processor = sample.untrained_processor()
    dense = sample._thinker_config(processor.tokenizer).to_dict()
    text, vision = dense["text_config"], dense["vision_config"]
    text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "num_hidden_layers": 4}
    for part in (text, vision):
        part.pop("model_type")
    tokens = {name: number for name, number in dense.items() if name.endswith("_token_id")}
    config = Qwen3VLMoeConfig(text_config=text, vision_config=vision, **tokens, dtype="float32")
    return _greedy(Qwen3VLMoeForConditionalGeneration(config), processor.tokenizer), processor


def _qwen2_5_vl() -> tuple[Part, Part]:
    tokenizer = sample.qwen_tokenizer()
    visual_px = 28 * 28
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
    vision = {
        "depth": 4,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": 64,
        "window_size": 56,
        "fullatt_block_indexes": [1, 3],
        "initializer_range": 0.12,
    }
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}  # of 32, the least of vLLM on a CPU
    config = Qwen2_5_VLConfig(
        text_config={**_text(tokenizer), **heads, "rope_parameters": rope},
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        dtype="float32",
    )
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            size={"shortest_edge": 4 * visual_px, "longest_edge": 20 * visual_px}
        ),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(
            size={"shortest_edge": 4 * visual_px, "longest_edge": 640 * visual_px}
        ),
        chat_template=sample.CHAT_TEMPLATE,
    )
    return _greedy(Qwen2_5_VLForConditionalGeneration(config), tokenizer), processor


def _smolvlm() -> tuple[Part, Part]:
    tokenizer = _idefics_tokenizer()
    edges: dict[str, Any] = {name: {"longest_edge": FRAME_PX} for name in ("size", "max_image_size")}
    sampling = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": FRAME_PX}}
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**edges),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(**edges, num_frames=64, fps=1, video_sampling=sampling),
        image_seq_len=16,
        chat_template=IDEFICS_TEMPLATE,
    )
    config = SmolVLMConfig(**_idefics_config(tokenizer))
    return _greedy(SmolVLMForConditionalGeneration(config), tokenizer), processor


def _idefics3() -> tuple[Part, Part]:
    tokenizer = _idefics_tokenizer()
    edges: dict[str, Any] = {name: {"longest_edge": FRAME_PX} for name in ("size", "max_image_size")}
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessor(**edges),
        tokenizer=tokenizer,
        image_seq_len=16,
        chat_template=IDEFICS_TEMPLATE,
    )
    config = Idefics3Config(**_idefics_config(tokenizer))
    return _greedy(Idefics3ForConditionalGeneration(config), tokenizer), processor


def _gemma3() -> tuple[Part, Part]:
    tokenizer = _idefics_tokenizer(("<image>", "<boi>", "<eoi>"))
    tokenizer._set_model_specific_special_tokens(
        {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": FRAME_PX, "width": FRAME_PX}),
        tokenizer=tokenizer,
        image_seq_length=16,
        chat_template=IDEFICS_TEMPLATE.replace("'<' + item.type + '>'", "'<boi>'"),
    )
    vision = {**_idefics_config(tokenizer)["vision_config"], "vision_use_head": False}
    config = Gemma3Config(
        text_config={"model_type": "gemma3_text", **_text(tokenizer), "head_dim": 16, "sliding_window": 4096},
        vision_config={"model_type": "siglip_vision_model", **vision},
        mm_tokens_per_image=16,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<boi>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<eoi>"),
        dtype="float32",
    )
    model = Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.12)  # else 0
    return _greedy(model, tokenizer), processor


def _llava() -> tuple[Part, Part]:
    tokenizer = _idefics_tokenizer()
    vision = {**_idefics_config(tokenizer)["vision_config"], "patch_size": 16}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"height": FRAME_PX, "width": FRAME_PX}, do_center_crop=False
        ),
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=IDEFICS_TEMPLATE,
    )
    config = LlavaConfig(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config={"model_type": "clip_vision_model", **vision},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        dtype="float32",
    )
    return _greedy(LlavaForConditionalGeneration(config), tokenizer), processor


def _idefics_config(tokenizer: Qwen2Tokenizer) -> Mapping[str, Any]:
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": FRAME_PX,
        "patch_size": 8,
        "initializer_range": 0.12,
    }
    return {
        "text_config": {"model_type": "llama", **_text(tokenizer)},
        "vision_config": vision,
        "scale_factor": 2,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32",
    }


def _idefics_tokenizer(tokens: tuple[str, ...] = IDEFICS_TOKENS) -> Qwen2Tokenizer:
    tokenizer = sample.qwen_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens])
    return tokenizer


def _text(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    """A decoder's settings; the wide initialisation lets each layer change the stream visibly."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "initializer_range": 0.12,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _greedy(model: Part, tokenizer: Qwen2Tokenizer) -> Part:
    """The model, without a word for an early end: all answers have the length asked for."""
    model.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id)
    return model


FAMILIES: Mapping[str, Callable[[], tuple[Part, Part]]] = {
    "qwen3-vl-moe": _qwen3_vl_moe,
    "qwen2.5-vl": _qwen2_5_vl,
    "smolvlm": _smolvlm,
    "idefics3": _idefics3,
    "gemma3": _gemma3,
    "llava": _llava,
}
"""Qwen3-VL itself is the sample's thinker."""
