"""V-JEPA 2 of transformers: latents of tubelets, bidirectional within a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoVideoProcessor,
    Dinov2Model,
    Dinov2WithRegistersModel,
    VJEPA2Model,
)

from thinkjepa.stages.data.decoding.client import FrameStack
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.encoder.base import VideoEncoder
from thinkjepa.stages.extract.models.weights import ModelFolder, explained_load_errors


class VJepa2Encoder(VideoEncoder):
    """V-JEPA 2 of any released size (arXiv 2506.09985)."""

    model_class = VJEPA2Model

    def __init__(self, folder: ModelFolder, config: Any, *, dtype: str, device: torch.device) -> None:
        super().__init__(folder, config, dtype=dtype, device=device)
        self.tubelet, self.width = int(config.tubelet_size), int(config.hidden_size)
        side = int(config.crop_size)
        self.frame_px, self.grid = (side, side), (side // config.patch_size, side // config.patch_size)
        self.longest_window = int(config.frames_per_clip)

    def load_processor(self) -> None:
        """As promised. A crop that is not the model's would make a wrong position grid without an error."""
        with explained_load_errors(self.folder, "encoder"):
            self._processor = AutoVideoProcessor.from_pretrained(self.folder.path)
            crop = self._processor.crop_size
        if (crop["height"], crop["width"]) != self.frame_px:
            raise StageError(
                f"--encoder {self.folder.name!r}: its processor crops to {crop['height']}x{crop['width']} "
                f"px, its config says {self.frame_px[0]}: use the processor that belongs to the model"
            )

    def preprocess(self, frames: FrameStack) -> Tensor:
        video = torch.from_numpy(np.require(frames, requirements="W")).permute(0, 3, 1, 2)
        pixels: Tensor = self._processor(
            videos=[video], return_tensors="pt", do_sample_frames=False, do_rescale=False, do_normalize=False
        )["pixel_values_videos"][0]
        return pixels

    def trunk(self, model: nn.Module) -> nn.Module:
        assert isinstance(model.encoder, nn.Module)
        return model.encoder

    def sequences(self, num_frames: int) -> Sequence[int]:
        return [num_frames // self.tubelet * self.grid[0] * self.grid[1]]

    def _latents(self, pixels_BFCHW: Tensor) -> Tensor:
        latents: Tensor = self._model.get_vision_features(pixels_BFCHW)
        return latents

    def _is_used(self, weight: str) -> bool:
        return weight.startswith("encoder.")


class Dinov2Encoder(VideoEncoder):
    """DINOv2 (arXiv 2304.07193), with registers or without. A latent step is a frame and sees only itself.

    Latents are the patch tokens behind the last norm; the class token and registers are left out.
    """

    model_class = Dinov2Model
    tubelet = 1

    def __init__(self, folder: ModelFolder, config: Any, *, dtype: str, device: torch.device) -> None:
        super().__init__(folder, config, dtype=dtype, device=device)
        self.width = int(config.hidden_size)
        self.load_processor()
        crop = self._processor.crop_size
        self.frame_px = (crop["height"], crop["width"])
        self.grid = (crop["height"] // config.patch_size, crop["width"] // config.patch_size)
        self.num_other_tokens = 1

    def load_processor(self) -> None:
        """As promised. Positions are interpolated to any grid, so the crop need only be whole patches."""
        with explained_load_errors(self.folder, "encoder"):
            self._processor = AutoImageProcessor.from_pretrained(self.folder.path)
            crop, patch_px = self._processor.crop_size, int(self.config.patch_size)
        if crop["height"] % patch_px or crop["width"] % patch_px:
            raise StageError(
                f"--encoder {self.folder.name!r}: its processor crops to {crop['height']}x{crop['width']} "
                f"px, which are no whole patches of {patch_px}: use the processor that belongs to the model"
            )

    def preprocess(self, frames: FrameStack) -> Tensor:
        images = list(torch.from_numpy(np.require(frames, requirements="W")).permute(0, 3, 1, 2))
        pixels: Tensor = self._processor(
            images=images, return_tensors="pt", do_rescale=False, do_normalize=False
        )["pixel_values"]
        return pixels

    def trunk(self, model: nn.Module) -> nn.Module:
        return model

    def sequences(self, num_frames: int) -> Sequence[int]:
        return [self.num_other_tokens + self.grid[0] * self.grid[1]] * num_frames

    def _latents(self, pixels_BFCHW: Tensor) -> Tensor:
        tokens: Tensor = self._model(pixels_BFCHW.flatten(0, 1)).last_hidden_state
        return tokens[:, self.num_other_tokens :]

    def _is_used(self, weight: str) -> bool:
        return not weight.endswith("mask_token")


class Dinov2RegistersEncoder(Dinov2Encoder):
    """DINOv2 with registers (arXiv 2309.16588)."""

    model_class = Dinov2WithRegistersModel

    def __init__(self, folder: ModelFolder, config: Any, *, dtype: str, device: torch.device) -> None:
        super().__init__(folder, config, dtype=dtype, device=device)
        self.num_other_tokens = 1 + int(config.num_register_tokens)


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
