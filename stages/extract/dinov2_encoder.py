"""DINOv2 of transformers: latents of single frames, as DINO-WM (arXiv 2411.04983) predicts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, Dinov2Model, Dinov2WithRegistersModel

from thinkjepa.stages.data.decode_process import FrameStack
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.encoder import VideoEncoder
from thinkjepa.stages.extract.weights import ModelFolder, explained_load_errors


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
