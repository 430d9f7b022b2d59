"""The sizes a model is built from: plain records, written to `run.json` and read back."""

from dataclasses import dataclass
from typing import Literal

from thinkjepa.stages.errors import StageError

AttentionPattern = Literal["frame_causal", "bidirectional"]
Variant = Literal["thinkjepa", "jepa", "vlm"]
Anchor = Literal["none", "last_pose"]

SMALLEST_HEAD_DIM = 6  # a pair of dims for each of the three axes


@dataclass(frozen=True, slots=True)
class LatentGrid:
    """The encoder's latents of one clip: steps of the observed and future windows, patches, latent dim."""

    observed_steps: int
    future_steps: int
    height: int
    width: int
    dim: int

    @property
    def tokens_per_step(self) -> int:
        return self.height * self.width


@dataclass(frozen=True, slots=True)
class ThinkerShape:
    """The thinker's pooled states of one clip: number of levels (stored layers) and their dim."""

    levels: int
    dim: int


@dataclass(frozen=True, slots=True)
class TrunkShape:
    """The stack of transformer blocks: how many, how wide, how many heads, and who sees whom."""

    depth: int
    width: int
    heads: int
    attention: AttentionPattern = "frame_causal"

    def __post_init__(self) -> None:
        if self.depth < 1 or self.heads < 1 or self.width % self.heads:
            raise StageError(
                f"predictor of depth {self.depth}, width {self.width} and {self.heads} heads: depth and "
                "heads must be positive and the width a multiple of the heads; V-JEPA 2 has 12, 384 and 12"
            )
        if self.head_dim < SMALLEST_HEAD_DIM:
            raise StageError(
                f"predictor of width {self.width} with {self.heads} heads has {self.head_dim} dims a head; "
                f"rotary positions on three axes need {SMALLEST_HEAD_DIM}: use fewer heads or a larger width"
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True, slots=True)
class HeadShape:
    """The trajectory head: which joints, at how many frames of a latent step, relative to what, how wide."""

    joints: tuple[str, ...]
    frames_per_step: int
    anchor: Anchor
    width: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """All that determines a model's parameters, except their values."""

    variant: Variant
    grid: LatentGrid
    trunk: TrunkShape
    thinker: ThinkerShape | None
    fusion_width: int
    head: HeadShape | None = None
