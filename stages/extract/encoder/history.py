"""Encoder features of the thinker's own frames: the control of equal information without a language model.

All thinker frames of a clip go through the encoder as one window, in their order. They lie before the split
by the rule that chose them, so that no feature knows of the future. What comes out is stored as the thinker's
states are: a `pooled` array with a level and streams.

Shape letters as in the encoder's contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from thinkjepa.cache import STREAMS, ArraySpec, ClipFeatures, ClipRow, Kind
from thinkjepa.stages.data.decoding.client import FrameStack
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.extract.encoder.base import VideoEncoder
from thinkjepa.stages.extract.models.weights import ModelFolder

VISUAL_STREAMS = frozenset({"prompt", "visual"})
"""Streams that a mean over what is seen belongs to. The others are of text, and absent."""


@dataclass(frozen=True, slots=True)
class HistoryEncoder:
    """An encoder as a frozen model of its own, which reads the thinker's frames. Both share the weights."""

    encoder: VideoEncoder
    kind: ClassVar[Kind] = "history"

    @property
    def folder(self) -> ModelFolder:
        """The encoder's files."""
        return self.encoder.folder

    @property
    def origin(self) -> dict[str, Any]:
        """The encoder's, with the streams: frames apart, which the sampling names, nothing else matters."""
        return {**self.encoder.origin, "streams": list(STREAMS)}

    @property
    def source(self) -> dict[str, Any]:
        """The encoder's."""
        return self.encoder.source

    def sampling(self, clips: ClipSettings) -> dict[str, Any]:
        """The rule that chooses the thinker's frames."""
        return clips.thinker_sampling

    def arrays(self, clips: ClipSettings) -> tuple[ArraySpec, ...]:
        """The arrays of the feature set. Raises StageError where the frames are no window of the encoder."""
        number = int(clips.thinker_sampling["frames"])
        self.encoder.require_window(number, flag="--keep-history with --thinker-frames")
        pooled = (1, len(STREAMS), self.encoder.width)
        return (ArraySpec("pooled", ("layer", "stream", "dim"), pooled, pooled, "float32"),)

    def windows(self, clip: ClipRow) -> list[Sequence[int]]:
        """The thinker's frames, as one window."""
        return [clip.thinker_frames]

    def load_processor(self) -> None:
        """Load the encoder's processor."""
        self.encoder.load_processor()

    def load(self) -> None:
        """Load the encoder, where it is not loaded yet."""
        self.encoder.load()

    def preprocess(self, frames: FrameStack) -> Tensor:
        """Frames as the encoder crops or pads them."""
        return self.encoder.preprocess(frames)

    def prepare(
        self, clip: ClipRow, windows: Sequence[Tensor], *, frame_px: tuple[int, int]
    ) -> Sequence[Tensor]:
        """The preprocessed window of a clip, as it is."""
        return windows

    def run(
        self, prepared: Sequence[tuple[ClipRow, Sequence[Tensor]]], *, batch_size: int
    ) -> list[ClipFeatures]:
        """Features of prepared clips, in their order."""
        latents_BTPD = self.encoder.encode([window for _, (window,) in prepared], batch_size=batch_size)
        return [
            ClipFeatures(clip.clip_id, {"pooled": pool_history(latents_TPD)})
            for (clip, _), latents_TPD in zip(prepared, latents_BTPD, strict=True)
        ]


def pool_history(latents_TPD: Tensor) -> Tensor:
    """The mean over steps and patches `(1, stream, D)` float32, in every stream of what is seen."""
    mean_D = latents_TPD.float().mean(dim=(0, 1))
    absent_D = torch.zeros_like(mean_D)
    return torch.stack([mean_D if name in VISUAL_STREAMS else absent_D for name in STREAMS])[None]
