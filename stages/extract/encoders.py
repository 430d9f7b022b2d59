"""The encoder that a model folder holds, by the type in its configuration."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import AutoConfig

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.dinov2_encoder import Dinov2Encoder, Dinov2RegistersEncoder
from thinkjepa.stages.extract.encoder import VideoEncoder
from thinkjepa.stages.extract.vjepa2_encoder import VJepa2Encoder
from thinkjepa.stages.extract.weights import ModelFolder, explained_load_errors

ENCODERS: Mapping[str, type[VideoEncoder]] = {
    "vjepa2": VJepa2Encoder,
    "dinov2": Dinov2Encoder,
    "dinov2_with_registers": Dinov2RegistersEncoder,
}
"""By `model_type`; a new family is a file and a line here."""


def open_encoder(folder: ModelFolder, *, dtype: str, device: torch.device) -> VideoEncoder:
    """The encoder in a folder, described, not loaded. Raises StageError for one of another family."""
    with explained_load_errors(folder, "encoder"):
        config = AutoConfig.from_pretrained(folder.path, trust_remote_code=False)
    if config.model_type not in ENCODERS:
        raise StageError(
            f"--encoder {folder.name!r} is a {config.model_type!r}; encoders are {', '.join(ENCODERS)}"
        )
    return ENCODERS[config.model_type](folder, config, dtype=dtype, device=device)
