"""The encoder: V-JEPA 2 of transformers, one forward per window.

Observed and future windows never share a forward: the encoder is bidirectional, and a window that
reaches over the split would carry the future into the observed features.

Shape letters: B clips, T latent steps, P patches (row-major height x width), D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoVideoProcessor, VJEPA2Model

from thinkjepa.cache import ArraySpec
from thinkjepa.stages.data.decode_process import FrameStack
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.device import library_versions, run_source
from thinkjepa.stages.extract.weights import (
    ModelFolder,
    explained_load_errors,
    preprocessing_digest,
    weights_digest,
)

ATTENTION = "sdpa"


class VideoEncoder:
    """A frozen V-JEPA 2. `load` brings its weights; before, it can only be described."""

    def __init__(self, folder: ModelFolder, *, dtype: str, device: torch.device) -> None:
        self.folder = folder
        self.dtype = dtype
        self.device = device
        with explained_load_errors(folder, "encoder"):
            config = AutoConfig.from_pretrained(folder.path)
            if config.model_type != "vjepa2":
                raise StageError(
                    f"--encoder {folder.name!r} is a {config.model_type!r}, not a V-JEPA 2 model"
                )
        self.tubelet, self.width = int(config.tubelet_size), int(config.hidden_size)
        self.crop_px = int(config.crop_size)
        self.grid = (self.crop_px // config.patch_size, self.crop_px // config.patch_size)
        self._model: Any = None
        self._processor: Any = None

    @property
    def origin(self) -> Mapping[str, Any]:
        return {
            "backend": "transformers",
            "weights": weights_digest(self.folder),
            "dtype": self.dtype,
            "preprocessing": {"files": preprocessing_digest(self.folder)},
            "attention": ATTENTION,
            "versions": library_versions(),
            "tubelet": self.tubelet,
            "grid": list(self.grid),
        }

    @property
    def source(self) -> Mapping[str, Any]:
        return run_source(self.folder, self.device)

    def load_processor(self) -> None:
        """Bring what `preprocess` needs into memory. Raises StageError where the processor's crop is not the
        model's: the position grid would be wrong without an error."""
        with explained_load_errors(self.folder, "encoder"):
            self._processor = AutoVideoProcessor.from_pretrained(self.folder.path)
            crop = self._processor.crop_size
        if (crop["height"], crop["width"]) != (self.crop_px, self.crop_px):
            raise StageError(
                f"--encoder {self.folder.name!r}: its processor crops to {crop['height']}x{crop['width']} "
                f"px, its config says {self.crop_px}: use the processor that belongs to the model"
            )

    def load(self) -> None:
        """Bring processor and weights into memory. Raises StageError where a weight is missing."""
        self.load_processor()
        with explained_load_errors(self.folder, "encoder"):
            self._model, report = VJEPA2Model.from_pretrained(
                self.folder.path,
                dtype=getattr(torch, self.dtype),
                attn_implementation=ATTENTION,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        missing = [name for name in report["missing_keys"] if name.startswith("encoder.")]
        if missing:
            raise StageError(
                f"--encoder {self.folder.name!r} lacks {len(missing)} weights, e.g. {missing[0]!r}"
            )
        self._model.eval().to(self.device)

    def preprocess(self, frames: FrameStack) -> Tensor:
        """A window's frames as the model's input `(frame, 3, crop, crop)`."""
        video = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2)
        pixels: Tensor = self._processor(videos=[video], return_tensors="pt", do_sample_frames=False)[
            "pixel_values_videos"
        ][0]
        return pixels

    @torch.inference_mode()
    def encode(self, windows: Sequence[Tensor], *, batch_size: int = 1) -> Tensor:
        """Latents `(B, T, P, D)` on the CPU of windows `(frame, 3, crop, crop)`, each seen by itself.

        A forward has `batch_size` rows, the last one repeated where windows are fewer, so that a window's
        latents do not depend on how many there are.
        """
        starts = range(0, len(windows), batch_size)
        return torch.cat([self._forward(windows[start : start + batch_size], batch_size) for start in starts])

    def _forward(self, windows: Sequence[Tensor], rows: int) -> Tensor:
        full = [*windows, *[windows[-1]] * (rows - len(windows))]
        pixels = torch.stack(full).to(self.device, getattr(torch, self.dtype))
        latents: Tensor = self._model.get_vision_features(pixels)[: len(windows)]
        num_steps, num_patches = pixels.shape[1] // self.tubelet, self.grid[0] * self.grid[1]
        return latents.reshape(len(windows), num_steps, num_patches, self.width).cpu()


def encoder_arrays(
    encoder: VideoEncoder, *, observed_frames: int, future_frames: int, future_windows: int
) -> tuple[ArraySpec, ...]:
    """The arrays of an encoder's feature set. Raises StageError for frames that do not fill tubelets."""
    for name, number in (("observed-frames", observed_frames), ("future-frames", future_frames)):
        if number % encoder.tubelet:
            raise StageError(
                f"--{name} {number} is not a multiple of the encoder's tubelet, {encoder.tubelet}"
            )
    patches = encoder.grid[0] * encoder.grid[1]
    observed = (observed_frames // encoder.tubelet, patches, encoder.width)
    future = (future_frames // encoder.tubelet, patches, encoder.width)
    return (
        ArraySpec("observed", ("time", "patch", "dim"), observed, observed, encoder.dtype),
        ArraySpec(
            name="future",
            dims=("window", "time", "patch", "dim"),
            shape=(future_windows, *future),
            chunks=(1, *future),
            dtype=encoder.dtype,
        ),
    )
