"""The tiny models' classes at sizes that take seconds a clip: random weights, features of 20 to 40 MB.

What the benchmarks of extraction need of a model is its time, its memory and the size of what it gives.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    VJEPA2Config,
    VJEPA2Model,
    VJEPA2VideoProcessor,
)

from thinkjepa.pipeline.sample.models import write_tiny_models

CROP_PX = 256
WIDTH = 768


def write_heavy_models(
    out: Path,
    *,
    thinker_layers: int = 8,
    encoder_layers: int = 2,
    mlp_ratio: float = 2.0,
    attention_width: int = WIDTH,
) -> None:
    """Write `out/thinker` and `out/encoder`, 768 wide, with the processors of the sample models.

    `attention_width` is that of all heads of a thinker's layer.
    """
    write_tiny_models(out, seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _widen_thinker(
            out / "thinker", num_layers=thinker_layers, mlp_ratio=mlp_ratio, attention_width=attention_width
        )
        _widen_encoder(out / "encoder", num_layers=encoder_layers, mlp_ratio=mlp_ratio)


def _widen_thinker(folder: Path, *, num_layers: int, mlp_ratio: float, attention_width: int) -> None:
    config = Qwen3VLConfig.from_pretrained(folder)
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = (
        WIDTH,
        int(WIDTH * mlp_ratio),
        num_layers,
    )
    text.num_attention_heads = text.num_key_value_heads = attention_width // text.head_dim
    config.vision_config.out_hidden_size = WIDTH
    text.initializer_range = config.vision_config.initializer_range = 0.02
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = None  # answers have exactly the length asked for
    model.save_pretrained(folder)


def _widen_encoder(folder: Path, *, num_layers: int, mlp_ratio: float) -> None:
    config = VJEPA2Config.from_pretrained(folder)
    config.crop_size, config.hidden_size, config.num_attention_heads = CROP_PX, WIDTH, 12
    config.num_hidden_layers, config.mlp_ratio, config.initializer_range = num_layers, mlp_ratio, 0.02
    VJEPA2Model(config).save_pretrained(folder)
    VJEPA2VideoProcessor(crop_size=CROP_PX).save_pretrained(folder)
