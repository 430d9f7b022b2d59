"""V-JEPA 2 of transformers: latents of tubelets, bidirectional within a window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoVideoProcessor, VJEPA2Model

from thinkjepa.stages.data.decode_process import FrameStack
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.encoder import VideoEncoder
from thinkjepa.stages.extract.weights import ModelFolder, explained_load_errors


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
