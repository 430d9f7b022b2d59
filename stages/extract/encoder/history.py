"""Encoder features of the thinker's own frames: the control of equal information without a language model.

All thinker frames of a clip go through the encoder as one window, in their order. They lie before the split
by the rule that chose them, so that no feature knows of the future. What comes out is stored as the thinker's
states are, with one level: means in the streams of what is seen, and slots, each patch over the steps of a
segment of the history and each step over its patches, with their positions.

Shape letters as in the encoder's contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from thinkjepa.cache import STREAMS, ArraySpec, ClipFeatures, ClipRow, Kind
from thinkjepa.stages.data.decoding.client import FrameStack
from thinkjepa.stages.data.framing import Box, grid_box
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.extract.encoder.base import VideoEncoder
from thinkjepa.stages.extract.models.weights import ModelFolder
from thinkjepa.stages.extract.settings import ModelSettings
from thinkjepa.stages.extract.thinker.kept import Kept
from thinkjepa.stages.extract.thinker.layout import VisualLayout

LEVELS = (0,)
"""Positions of the levels: the encoder's last layer alone."""

VISUAL_STREAMS = frozenset({"prompt", "visual"})
"""Streams that a mean over what is seen belongs to. The others are of text, and absent."""


FrameSize = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True)
class HistoryEncoder:
    """An encoder as a frozen model of its own, which reads the thinker's frames. Both share the weights."""

    encoder: VideoEncoder
    kept: Kept
    """Slots, or means alone. There is no text."""
    kind: ClassVar[Kind] = "history"

    @classmethod
    def of(cls, encoder: VideoEncoder, settings: ModelSettings) -> HistoryEncoder:
        """The history that `--keep` and `--slot-segments` ask for."""
        return cls(encoder, replace(Kept.of(settings), text=False, tokens=False))

    @property
    def folder(self) -> ModelFolder:
        """The encoder's files."""
        return self.encoder.folder

    @property
    def origin(self) -> dict[str, Any]:
        """The encoder's, with the arrays kept. The sampling names the frames, nothing else matters."""
        return {**self.encoder.origin, **self.kept.origin}

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
        return self.kept.arrays(LEVELS, width=self.encoder.width, dtype=self.encoder.dtype)

    def num_slots(self, num_frames: int) -> int:
        """Slots of a clip with so many thinker frames."""
        times_s = [0.0] * num_frames
        return self._layout(times_s, (1, 1)).num_slots(self.kept.slot_segments) if self._has_slots else 0

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
        self, clip: ClipRow, windows: Sequence[Tensor], *, frame_px: FrameSize
    ) -> tuple[Tensor, FrameSize]:
        """The preprocessed window of a clip, as it is, and the size of the video's frames."""
        (window,) = windows
        return window, frame_px

    def run(
        self, prepared: Sequence[tuple[ClipRow, tuple[Tensor, FrameSize]]], *, batch_size: int
    ) -> list[ClipFeatures]:
        """Features of prepared clips, in their order."""
        latents_BTPD = self.encoder.encode([window for _, (window, _) in prepared], batch_size=batch_size)
        return [
            self._features(clip, latents_TPD, frame_px)
            for (clip, (_, frame_px)), latents_TPD in zip(prepared, latents_BTPD, strict=True)
        ]

    def _features(self, clip: ClipRow, latents_TPD: Tensor, frame_px: FrameSize) -> ClipFeatures:
        arrays = {"pooled": pool_history(latents_TPD)}
        if self._has_slots:
            layout, segments = self._layout(clip.thinker_times_s, frame_px), self.kept.slot_segments
            slots_LND = layout.slots(latents_TPD.flatten(0, 1)[None], segments=segments)
            arrays["slots"] = slots_LND.to(latents_TPD.dtype)
            arrays["slot_position"] = layout.slot_positions(clip.split_time_s, segments=segments)
        return ClipFeatures(
            clip.clip_id,
            arrays,
            slot_count=len(arrays.get("slot_position", ())),
            frame_width_px=frame_px[0],
            frame_height_px=frame_px[1],
        )

    @property
    def _has_slots(self) -> bool:
        return self.kept.slot_segments > 0

    def _layout(self, times_s: Sequence[float], frame_px: FrameSize) -> VisualLayout:
        """The encoder's patches as visual tokens: a group is a latent step, its grid that of the patches."""
        (width, height), tubelet = frame_px, self.encoder.tubelet
        box = grid_box(self.encoder.framing, width_px=width, height_px=height)
        starts = range(0, len(times_s), tubelet)
        rows, columns = self.encoder.grid
        return VisualLayout(
            sizes=(rows * columns,) * len(starts),
            spans_s=tuple((times_s[start], times_s[start + tubelet - 1]) for start in starts),
            grid=self.encoder.grid,
            view=Box(box.left / width, box.top / height, box.width / width, box.height / height),
            frame_px=frame_px,
        )


def pool_history(latents_TPD: Tensor) -> Tensor:
    """The mean over steps and patches `(1, stream, D)` float32, in every stream of what is seen."""
    mean_D = latents_TPD.float().mean(dim=(0, 1))
    absent_D = torch.zeros_like(mean_D)
    return torch.stack([mean_D if name in VISUAL_STREAMS else absent_D for name in STREAMS])[None]
