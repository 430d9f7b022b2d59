"""V-JEPA 2 of transformers: latents of tubelets, bidirectional within a window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import AutoVideoProcessor, VJEPA2Model

from thinkjepa.stages.data.decoding.client import FrameStack
from thinkjepa.stages.extract.encoder.base import VideoEncoder
from thinkjepa.stages.extract.views import as_video


class VJepa2Encoder(VideoEncoder):
    """V-JEPA 2 of any released size (arXiv 2506.09985)."""

    model_type = "vjepa2"
    model_class = VJEPA2Model

    def _read_shape(self) -> None:
        config = self.config
        self.tubelet, self.width = int(config.tubelet_size), int(config.hidden_size)
        side = int(config.crop_size)
        self.frame_px, self.grid = (side, side), (side // config.patch_size, side // config.patch_size)
        self.longest_window = int(config.frames_per_clip)

    def _cropped(self, frames: FrameStack) -> Tensor:
        """As promised, by the video processor."""
        pixels: Tensor = self._processor(
            videos=[as_video(frames)],
            return_tensors="pt",
            do_sample_frames=False,
            do_rescale=False,
            do_normalize=False,
        )["pixel_values_videos"][0]
        return pixels

    def trunk(self, model: nn.Module) -> nn.Module:
        """The encoder, without the predictor."""
        assert isinstance(model.encoder, nn.Module)
        return model.encoder

    def sequences(self, num_frames: int) -> Sequence[int]:
        """All patches of the window in one sequence."""
        return [num_frames // self.tubelet * self.grid[0] * self.grid[1]]

    def _open_processor(self) -> Any:
        return AutoVideoProcessor.from_pretrained(self.folder.path, trust_remote_code=False)

    def _crop_problem(self, crop: tuple[int, int]) -> str:
        # Another crop would make a wrong position grid without an error.
        return "" if crop == self.frame_px else f"its config says {self.frame_px[0]}"

    def _latents(self, pixels_BFCHW: Tensor) -> Tensor:
        latents: Tensor = self._model.get_vision_features(pixels_BFCHW)
        return latents

    def _is_used(self, weight: str) -> bool:
        return weight.startswith("encoder.")
