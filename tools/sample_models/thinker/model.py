"""A small Qwen3-VL with a tokenizer of its own words, untrained.

Patches of 8 px make 6 x 6 visual tokens of two frames of 96 px. One of the vision's four layers feeds the
decoder directly too (DeepStack), as several do in the published models.
"""

from __future__ import annotations

import json

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from sample_models.thinker.sights import FRAME_PX
from sample_models.thinker.words import all_words
from thinkjepa.pipeline.sample.models import MERGE_SIZE, generation_config, qwen_tokenizer, thinker_processor
from thinkjepa.stages.extract.settings import ModelSettings

PATCH_PX = 8

MAX_TOKENS_PER_FRAME = (FRAME_PX // PATCH_PX // MERGE_SIZE) ** 2
"""Larger frames are scaled down to as many, so that things are as large as in training."""

MAX_WORDS = 640
"""Entries of the tokenizer with the 256 bytes: all words of answers and of the conversation."""

PROMPT = ModelSettings().prompt


def new_processor() -> Qwen3VLProcessor:
    """Processor and tokenizer of the thinker, whose answer begins at once, without reasoning."""
    tokenizer = qwen_tokenizer(_merges())
    return thinker_processor(
        tokenizer, patch_px=PATCH_PX, max_tokens_per_frame=MAX_TOKENS_PER_FRAME, opening=""
    )


def new_model(
    tokenizer: Qwen2Tokenizer, *, width: int, vision_width: int, seed: int
) -> Qwen3VLForConditionalGeneration:
    """A thinker of 6 layers with random weights. The global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(_config(tokenizer, width=width, vision_width=vision_width))
    model.generation_config = generation_config(tokenizer)
    return model


def _config(tokenizer: Qwen2Tokenizer, *, width: int, vision_width: int) -> Qwen3VLConfig:
    token_id = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": 6,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 64,
        "head_dim": 32,
        "max_position_embeddings": 8192,
        "initializer_range": 0.04,
        # Sections of half a head for time, height and width. The longest distances are hundreds of tokens.
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        "pad_token_id": token_id("<|endoftext|>"),
        "bos_token_id": token_id("<|endoftext|>"),
        "eos_token_id": token_id("<|im_end|>"),
    }
    vision = {
        "depth": 4,
        "hidden_size": vision_width,
        "intermediate_size": 3 * vision_width,
        "num_heads": vision_width // 32,
        "patch_size": PATCH_PX,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
        "out_hidden_size": width,
        "num_position_embeddings": (FRAME_PX // PATCH_PX) ** 2,
        "deepstack_visual_indexes": [1],
        "initializer_range": 0.04,
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
        dtype="float32",
    )


def _merges() -> list[tuple[str, str]]:
    """Byte pairs that make a token of each word. Their order follows from the words alone."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = qwen_tokenizer().backend_tokenizer.pre_tokenizer
    trainer = BpeTrainer(vocab_size=MAX_WORDS, min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator([*all_words(), PROMPT, "user\nassistant\n<0.1 seconds>"], trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(first, second) for first, second in merges]
