"""The contract of every video encoder: one forward per window, described by its configuration before `load`.

Observed and future windows never share a forward. An encoder may be bidirectional, so a window that reaches
over the split would carry the future into the observed features.

A family is a module of this folder whose classes name the `model_type` that they open. Nothing else lists it.

Shape letters: B clips, F frames of a window, T latent steps, P patches (row-major height x width), D width.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import Any, ClassVar

import torch
from PIL.Image import Resampling
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from transformers import AutoConfig

from thinkjepa.cache import ArraySpec, ClipFeatures, ClipRow, Kind
from thinkjepa.stages.data.decoding.client import FrameStack
from thinkjepa.stages.data.framing import Framing, letterbox_framing, processor_framing
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract import encoder as folder_of_families
from thinkjepa.stages.extract.models.digests import preprocessing_digest, weights_digest
from thinkjepa.stages.extract.models.runtime import library_versions, run_source
from thinkjepa.stages.extract.models.weights import ModelFolder, explained_load_errors
from thinkjepa.stages.extract.settings import EncoderFit
from thinkjepa.stages.extract.views import letterboxed

ATTENTION = "sdpa"


class VideoEncoder(ABC):
    """A frozen encoder. `load` brings its weights, which a description does without."""

    kind: ClassVar[Kind] = "encoder"
    families: ClassVar[dict[str, type[VideoEncoder]]] = {}
    """All imported families, by model type."""
    model_type: ClassVar[str]
    """The `model_type` of configurations that it opens."""
    model_class: ClassVar[Any]
    """The class of transformers."""
    tubelet: int
    """Frames of a latent step."""
    width: int
    grid: tuple[int, int]
    """Patches of a frame, height and width."""
    frame_px: tuple[int, int]
    """Height and width of a preprocessed frame, pixels."""
    longest_window: int | None = None
    """Frames of the longest window that the model was made for. None for any."""

    def __init_subclass__(cls) -> None:
        VideoEncoder.families[cls.model_type] = cls

    def __init__(
        self,
        folder: ModelFolder,
        config: Any,
        *,
        dtype: str,
        device: torch.device,
        fit: EncoderFit = "crop",
    ) -> None:
        self.folder = folder
        self.fit = fit
        self.config = config
        self.dtype = dtype
        self.device = device
        self._model: Any = None
        self._processor: Any = None
        self._read_shape()

    @property
    def origin(self) -> dict[str, Any]:
        """Everything that determines the latents, without the sampling of frames."""
        return {
            "backend": "transformers",
            "weights": weights_digest(self.folder),
            "dtype": self.dtype,
            "preprocessing": {
                "files": preprocessing_digest(self.folder),
                **({"fit": self.fit, "padding": list(self.padding)} if self.fit != "crop" else {}),
            },
            "attention": ATTENTION,
            "versions": library_versions(),
            "tubelet": self.tubelet,
            "grid": list(self.grid),
        }

    @property
    def source(self) -> dict[str, Any]:
        """Model name, revision, versions, device and framing, for people."""
        return {**run_source(self.folder, self.device), "framing": self.framing}

    @property
    def framing(self) -> Framing:
        """Resizing and cropping or padding of frames. `origin` has the digest of the files that define it."""
        if self.fit == "letterbox":
            return letterbox_framing(*self.frame_px)
        self.load_processor()
        return processor_framing(self._processor)

    @property
    def padding(self) -> tuple[int, ...]:
        """Red, green and blue of a letterbox's free part: the processor's mean, about 0 once scaled."""
        self.load_processor()
        return tuple(round(255 * mean) for mean in self._processor.image_mean)

    def sampling(self, clips: ClipSettings) -> dict[str, Any]:
        """The rule that chooses the frames."""
        return clips.dense_sampling

    def arrays(self, clips: ClipSettings) -> tuple[ArraySpec, ...]:
        """The arrays of the feature set.

        Raises StageError for windows that `require_window` refuses.
        """
        self.require_window(clips.observed_frames, flag="--observed-frames")
        self.require_window(clips.future_frames, flag="--future-frames")
        patches = self.grid[0] * self.grid[1]
        observed = (clips.observed_frames // self.tubelet, patches, self.width)
        future = (clips.future_frames // self.tubelet, patches, self.width)
        return (
            ArraySpec("observed", ("time", "patch", "dim"), observed, observed, self.dtype),
            ArraySpec(
                name="future",
                dims=("window", "time", "patch", "dim"),
                shape=(clips.future_windows, *future),
                chunks=(1, *future),
                dtype=self.dtype,
            ),
        )

    def require_window(self, number: int, *, flag: str) -> None:
        """Raise StageError for a window that does not fill tubelets, or is longer than the model takes.

        `flag` asked for its `number` of frames.
        """
        if number % self.tubelet:
            raise StageError(f"{flag} {number} is not a multiple of the encoder's tubelet, {self.tubelet}")
        if self.longest_window is not None and number > self.longest_window:
            raise StageError(
                f"{flag} {number}: --encoder {self.folder.name!r} was made for windows of up to "
                f"{self.longest_window} frames; give fewer, or an encoder for longer ones"
            )

    def windows(self, clip: ClipRow) -> list[Sequence[int]]:
        """Frame indices of a clip's windows, observed first. Windows share frames, never a forward."""
        return [clip.observed_frames, *clip.future_frames]

    def load_processor(self) -> None:
        """Load what `preprocess` needs. Raises StageError where it is not the model's."""
        if self._processor is None:
            with explained_load_errors(self.folder, "encoder"):
                processor = self._open_processor()
                crop = (processor.crop_size["height"], processor.crop_size["width"])
            if problem := self._crop_problem(crop):
                raise StageError(
                    f"--encoder {self.folder.name!r}: its processor crops to {crop[0]}x{crop[1]} "
                    f"px, {problem}: use the processor that belongs to the model"
                )
            self._processor = processor

    def load(self) -> None:
        """Load processor and weights, once. Raises StageError where a weight is missing."""
        if self._model is not None:
            return
        self.load_processor()
        with explained_load_errors(self.folder, "encoder"):
            model, report = self.model_class.from_pretrained(
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
        self._model = model.eval().to(self.device)

    def preprocess(self, frames: FrameStack) -> Tensor:
        """Frames resized and cropped or padded, each by itself: `(F, 3, height, width)` uint8.

        `encode` scales the values: as float32 they would wait, and travel, four times as large.
        """
        if self.fit == "crop":
            return self._cropped(frames)
        resample = InterpolationMode[Resampling(self._processor.resample).name]
        return letterboxed(frames, self.frame_px, fill=self.padding, resample=resample)

    def prepare(
        self, clip: ClipRow, windows: Sequence[Tensor], *, frame_px: tuple[int, int]
    ) -> Sequence[Tensor]:
        """The preprocessed windows of a clip, as they are."""
        return windows

    def run(
        self, prepared: Sequence[tuple[ClipRow, Sequence[Tensor]]], *, batch_size: int
    ) -> list[ClipFeatures]:
        """Features of prepared clips, in their order."""
        by_window = zip(*(windows for _, windows in prepared), strict=True)
        observed, *future = [self.encode(windows, batch_size=batch_size) for windows in by_window]
        stacked = torch.stack(future, dim=1)
        return [
            ClipFeatures(clip.clip_id, {"observed": observed[row], "future": stacked[row]})
            for row, (clip, _) in enumerate(prepared)
        ]

    @torch.inference_mode()
    def encode(self, windows: Sequence[Tensor], *, batch_size: int = 1) -> Tensor:
        """Latents `(B, T, P, D)` on the CPU of windows `(F, 3, height, width)`, each by itself.

        A forward has `batch_size` rows, the last one repeated where windows are fewer, so that a window's
        latents do not depend on how many there are.
        """
        starts = range(0, len(windows), batch_size)
        return torch.cat([self._forward(windows[start : start + batch_size], batch_size) for start in starts])

    def build(self) -> nn.Module:
        """The model with meaningless weights on torch's default device, for counting its costs."""
        model: nn.Module = self.model_class(self.config)
        return model

    @abstractmethod
    def trunk(self, model: nn.Module) -> nn.Module:
        """The part of the model that every token of a window goes through."""

    @abstractmethod
    def sequences(self, num_frames: int) -> Sequence[int]:
        """Tokens that attend to each other, for each forward of a window of `num_frames`."""

    def scaled(self, pixels: Tensor) -> Tensor:
        """Preprocessed frames `(..., 3, height, width)` uint8 as float32 of the model's mean and std."""
        own = self._processor
        scaled: Tensor = own.rescale_and_normalize(
            pixels, own.do_rescale, own.rescale_factor, own.do_normalize, own.image_mean, own.image_std
        )
        return scaled

    def _forward(self, windows: Sequence[Tensor], rows: int) -> Tensor:
        full = [*windows, *[windows[-1]] * (rows - len(windows))]
        pixels = self.scaled(torch.stack(full).to(self.device)).to(getattr(torch, self.dtype))
        num_steps, num_patches = pixels.shape[1] // self.tubelet, self.grid[0] * self.grid[1]
        latents = self._latents(pixels).reshape(rows, num_steps, num_patches, self.width)
        return latents[: len(windows)].cpu()

    @abstractmethod
    def _read_shape(self) -> None:
        """Set tubelet, width, grid, frame size and longest window from configuration and processor."""

    @abstractmethod
    def _cropped(self, frames: FrameStack) -> Tensor:
        """Frames as the model's processor resizes and crops them, `(F, 3, height, width)` uint8."""

    @abstractmethod
    def _open_processor(self) -> Any:
        """The processor of transformers in the model's folder."""

    @abstractmethod
    def _crop_problem(self, crop: tuple[int, int]) -> str:
        """Reason why the model does not take frames of this height and width, or ""."""

    @abstractmethod
    def _latents(self, pixels_BFCHW: Tensor) -> Tensor:
        """Patch tokens of every step, in any shape of `B * T * P * D` values in this order."""

    @abstractmethod
    def _is_used(self, weight: str) -> bool:
        """True if latents depend on a weight, by its name."""


def open_encoder(
    folder: ModelFolder, *, dtype: str, device: torch.device, fit: EncoderFit = "crop"
) -> VideoEncoder:
    """The encoder in a folder, described, not loaded. Raises StageError for one of no known family."""
    with explained_load_errors(folder, "encoder"):
        config = AutoConfig.from_pretrained(folder.path, trust_remote_code=False)
    for module in pkgutil.iter_modules(folder_of_families.__path__):
        import_module(f"{folder_of_families.__name__}.{module.name}")
    families = VideoEncoder.families
    if config.model_type not in families:
        known = ", ".join(sorted(families))
        raise StageError(f"--encoder {folder.name!r} is a {config.model_type!r}; encoders are {known}")
    return families[config.model_type](folder, config, dtype=dtype, device=device, fit=fit)
