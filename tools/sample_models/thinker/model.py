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
from thinkjepa.pipeline.sample.models import (
    MERGE_SIZE,
    generation_config,
    qwen3_vl_config,
    qwen_tokenizer,
    thinker_processor,
)
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
    text = {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": 6,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 64,
        "initializer_range": 0.04,
    }
    vision = {
        "depth": 4,
        "hidden_size": vision_width,
        "intermediate_size": 3 * vision_width,
        "num_heads": vision_width // 32,
        "patch_size": PATCH_PX,
        "out_hidden_size": width,
        "num_position_embeddings": (FRAME_PX // PATCH_PX) ** 2,
        "deepstack_visual_indexes": [1],
        "initializer_range": 0.04,
    }
    # The longest distances are hundreds of tokens: a smaller base of the rotation than the published one.
    return qwen3_vl_config(tokenizer, text=text, vision=vision, rope_theta=10_000.0)


def _merges() -> list[tuple[str, str]]:
    """Byte pairs that make a token of each word. Their order follows from the words alone."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = qwen_tokenizer().backend_tokenizer.pre_tokenizer
    trainer = BpeTrainer(vocab_size=MAX_WORDS, min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator([*all_words(), PROMPT, "user\nassistant\n<0.1 seconds>"], trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(first, second) for first, second in merges]
