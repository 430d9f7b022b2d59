"""Published shapes of well-known models: what their features take on disk where they are out of reach."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from thinkjepa.stages.data.clips import ClipSettings
from thinkjepa.stages.extract.disk_space import stored_bytes
from thinkjepa.stages.extract.settings import ModelSettings, parse_layers
from thinkjepa.stages.extract.thinker import TYPICAL_TOKENS, thinker_arrays


@dataclass(frozen=True, slots=True)
class ThinkerShape:
    """Decoder layers, and the width of the residual stream."""

    num_layers: int
    width: int


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """Patches of a latent step, their width, and the frames of a step."""

    num_patches: int
    width: int
    tubelet: int = 2


THINKERS = {
    f"Qwen/Qwen3-VL-{size}-{kind}": shape
    for size, shape in {
        "2B": ThinkerShape(28, 2048),
        "4B": ThinkerShape(36, 2560),
        "8B": ThinkerShape(36, 4096),
    }.items()
    for kind in ("Thinking", "Instruct")
}

ENCODERS = {
    "facebook/vjepa2-vitl-fpc64-256": EncoderShape(16 * 16, 1024),
    "facebook/vjepa2-vith-fpc64-256": EncoderShape(16 * 16, 1280),
    "facebook/vjepa2-vitg-fpc64-256": EncoderShape(16 * 16, 1408),
    "facebook/vjepa2-vitg-fpc64-384": EncoderShape(24 * 24, 1408),
}
"""Of their configurations on the hub."""


def known_clip_bytes(models: ModelSettings, clips: ClipSettings, *, dtype: str) -> tuple[int, int] | None:
    """About how many bytes a clip takes, of the thinker and of the encoder; None where one is not known.

    The thinker's tokens are a typical number. Raises StageError for layers that the thinker does not have.
    """
    thinker, encoder = THINKERS.get(models.thinker), ENCODERS.get(models.encoder)
    if thinker is None or encoder is None:
        return None
    layers = parse_layers(models.layers, num_layers=thinker.num_layers)
    arrays = thinker_arrays(layers, width=thinker.width, dtype=dtype)
    states = sum(stored_bytes(spec, num_tokens=TYPICAL_TOKENS) for spec in arrays)
    frames = clips.observed_frames + clips.future_windows * clips.future_frames
    values = math.ceil(frames / encoder.tubelet) * encoder.num_patches * encoder.width
    element: torch.dtype = getattr(torch, dtype)
    return states, values * element.itemsize
