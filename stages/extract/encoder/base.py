"""What every video encoder does: one forward per window, described by its configuration before it is loaded.

Observed and future windows never share a forward: an encoder may be bidirectional, and a window that
reaches over the split would carry the future into the observed features.

Shape letters: B clips, F frames of a window, T latent steps, P patches (row-major height x width), D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from thinkjepa.cache import ArraySpec
from thinkjepa.stages.data.decoding.client import FrameStack
from thinkjepa.stages.data.framing import Framing, processor_framing
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.models.runtime import library_versions, run_source
from thinkjepa.stages.extract.models.weights import (
    ModelFolder,
    explained_load_errors,
    preprocessing_digest,
    weights_digest,
)

ATTENTION = "sdpa"


class VideoEncoder(ABC):
    """A frozen encoder. `load` brings its weights; before, it can only be described."""

    model_class: ClassVar[Any]
    """The class of transformers."""
    tubelet: int
    """Frames of a latent step."""
    width: int
    grid: tuple[int, int]
    """Patches of a frame, height and width."""
    frame_px: tuple[int, int]
    """What it sees of a frame, height and width in pixels."""
    longest_window: int | None = None
    """Frames of the longest window that the model was made for; None: any."""

    def __init__(self, folder: ModelFolder, config: Any, *, dtype: str, device: torch.device) -> None:
        self.folder = folder
        self.config = config
        self.dtype = dtype
        self.device = device
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
        return {**run_source(self.folder, self.device), "framing": self.framing}

    @property
    def framing(self) -> Framing:
        """How a frame becomes what the encoder sees; in `source`, since `origin` has the files' digest."""
        if self._processor is None:
            self.load_processor()
        return processor_framing(self._processor)

    @abstractmethod
    def load_processor(self) -> None:
        """Bring what `preprocess` needs into memory. Raises StageError where it is not the model's."""

    def load(self) -> None:
        """Bring processor and weights into memory. Raises StageError where a weight is missing."""
        self.load_processor()
        with explained_load_errors(self.folder, "encoder"):
            self._model, report = self.model_class.from_pretrained(
                self.folder.path,
                dtype=getattr(torch, self.dtype),
                attn_implementation=ATTENTION,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        missing = sorted(name for name in report["missing_keys"] if self._is_used(name))
        if missing:
            raise StageError(
                f"--encoder {self.folder.name!r} lacks {len(missing)} weights, e.g. {missing[0]!r}"
            )
        self._model.eval().to(self.device)

    @abstractmethod
    def preprocess(self, frames: FrameStack) -> Tensor:
        """A window's frames as the model sees them, resized and cropped: `(F, 3, height, width)` uint8.

        Each by itself. `encode` scales them: as float32 they would wait, and travel, four times as large.
        """

    @torch.inference_mode()
    def encode(self, windows: Sequence[Tensor], *, batch_size: int = 1) -> Tensor:
        """Latents `(B, T, P, D)` on the CPU of windows `(F, 3, height, width)`, each seen by itself.

        A forward has `batch_size` rows, the last one repeated where windows are fewer, so that a window's
        latents do not depend on how many there are.
        """
        starts = range(0, len(windows), batch_size)
        return torch.cat([self._forward(windows[start : start + batch_size], batch_size) for start in starts])

    def build(self) -> nn.Module:
        """The model with weights that mean nothing, in torch's default device: to count what it costs."""
        model: nn.Module = self.model_class(self.config)
        return model

    @abstractmethod
    def trunk(self, model: nn.Module) -> nn.Module:
        """The part of the model that every token of a window goes through."""

    @abstractmethod
    def sequences(self, num_frames: int) -> Sequence[int]:
        """Tokens that attend to each other, for each forward of a window of so many frames."""

    def _forward(self, windows: Sequence[Tensor], rows: int) -> Tensor:
        full = [*windows, *[windows[-1]] * (rows - len(windows))]
        pixels = self.scaled(torch.stack(full).to(self.device)).to(getattr(torch, self.dtype))
        num_steps, num_patches = pixels.shape[1] // self.tubelet, self.grid[0] * self.grid[1]
        latents = self._latents(pixels).reshape(rows, num_steps, num_patches, self.width)
        return latents[: len(windows)].cpu()

    def scaled(self, pixels: Tensor) -> Tensor:
        """Preprocessed frames `(..., 3, height, width)` uint8, as float32 of the model's mean and scale."""
        own = self._processor
        scaled: Tensor = own.rescale_and_normalize(
            pixels, own.do_rescale, own.rescale_factor, own.do_normalize, own.image_mean, own.image_std
        )
        return scaled

    @abstractmethod
    def _latents(self, pixels_BFCHW: Tensor) -> Tensor:
        """Patch tokens of every step, in any shape of `B * T * P * D` values in this order."""

    @abstractmethod
    def _is_used(self, weight: str) -> bool:
        """Whether latents depend on a weight, by its name."""


def encoder_arrays(
    encoder: VideoEncoder, *, observed_frames: int, future_frames: int, future_windows: int
) -> tuple[ArraySpec, ...]:
    """The arrays of an encoder's feature set.

    Raises StageError for windows that do not fill tubelets, or are longer than those the model was made for.
    """
    for name, number in (("observed-frames", observed_frames), ("future-frames", future_frames)):
        if number % encoder.tubelet:
            raise StageError(
                f"--{name} {number} is not a multiple of the encoder's tubelet, {encoder.tubelet}"
            )
        if encoder.longest_window is not None and number > encoder.longest_window:
            raise StageError(
                f"--{name} {number}: --encoder {encoder.folder.name!r} was made for windows of up to "
                f"{encoder.longest_window} frames; give fewer, or an encoder for longer ones"
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
