"""DINOv2 of transformers, with registers or without: latents of single frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import AutoImageProcessor, Dinov2Model, Dinov2WithRegistersModel

from thinkjepa.stages.data.decoding.client import FrameStack
from thinkjepa.stages.extract.encoder.base import VideoEncoder
from thinkjepa.stages.extract.views import as_video


class Dinov2Encoder(VideoEncoder):
    """DINOv2 (arXiv 2304.07193). A latent step is a frame, encoded by itself.

    Latents are the patch tokens after the last norm. The class token and registers are left out.
    """

    model_type = "dinov2"
    model_class = Dinov2Model
    tubelet = 1

    def _read_shape(self) -> None:
        config = self.config
        self.width = int(config.hidden_size)
        self.load_processor()
        crop = self._processor.crop_size
        self.frame_px = (crop["height"], crop["width"])
        self.grid = (crop["height"] // config.patch_size, crop["width"] // config.patch_size)
        self.num_other_tokens = 1 + int(getattr(config, "num_register_tokens", 0))

    def _cropped(self, frames: FrameStack) -> Tensor:
        """As promised, by the image processor."""
        images = list(as_video(frames))
        pixels: Tensor = self._processor(
            images=images, return_tensors="pt", do_rescale=False, do_normalize=False
        )["pixel_values"]
        return pixels

    def trunk(self, model: nn.Module) -> nn.Module:
        """The whole model."""
        return model

    def sequences(self, num_frames: int) -> Sequence[int]:
        """One sequence per frame."""
        return [self.num_other_tokens + self.grid[0] * self.grid[1]] * num_frames

    def _open_processor(self) -> Any:
        return AutoImageProcessor.from_pretrained(self.folder.path, trust_remote_code=False)

    def _crop_problem(self, crop: tuple[int, int]) -> str:
        # Positions are interpolated to any grid, so the crop need only be whole patches.
        patch_px = int(self.config.patch_size)
        whole = not any(side % patch_px for side in crop)
        return "" if whole else f"which are no whole patches of {patch_px}"

    def _latents(self, pixels_BFCHW: Tensor) -> Tensor:
        tokens: Tensor = self._model(pixels_BFCHW.flatten(0, 1)).last_hidden_state
        return tokens[:, self.num_other_tokens :]

    def _is_used(self, weight: str) -> bool:
        return not weight.endswith("mask_token")


class Dinov2RegistersEncoder(Dinov2Encoder):
    """DINOv2 with registers (arXiv 2309.16588)."""

    model_type = "dinov2_with_registers"
    model_class = Dinov2WithRegistersModel
