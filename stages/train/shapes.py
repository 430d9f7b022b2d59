"""The sizes a model is built from: plain records, written to `run.json` and read back."""

from dataclasses import dataclass, field
from typing import Literal

from thinkjepa.cache import TOKEN_KINDS
from thinkjepa.stages.errors import StageError

AttentionPattern = Literal["frame_causal", "bidirectional"]
Variant = Literal["thinkjepa", "jepa", "vlm"]
WITHOUT_THINKER: frozenset[Variant] = frozenset({"jepa"})
"""Variants that read no thinker states: their runs are the same whatever the thinker was asked."""

Anchor = Literal["none", "last_pose"]
GuidanceKind = Literal["film", "adaln", "cross"]
LevelAssignment = Literal["fixed", "mixture"]
LevelChoice = Literal["all", "last", "middle"]
StreamChoice = Literal["both", "prompt", "generated"]

PROMPT_KINDS, GENERATED_KINDS = ("text", "visual"), ("generated", "reasoning")

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
class LatentView:
    """How a run looks at the stored latents, observed and future alike."""

    pool: int = 1
    """Side, in patches, of the squares that are averaged into one latent."""
    normalised: bool = False
    """Whether each latent is layer-normed over its channels."""


@dataclass(frozen=True, slots=True)
class GuidanceShape:
    """How the thinker's levels and streams reach the predictor's depths."""

    kind: GuidanceKind = "film"
    levels: LevelAssignment = "fixed"
    use_levels: LevelChoice = "all"
    use_streams: StreamChoice = "both"
    cross_tokens: str = "all"

    def used_levels(self, num_levels: int) -> tuple[int, ...]:
        """Levels that guide, in order, of those stored."""
        if self.use_levels == "all":
            return tuple(range(num_levels))
        return (num_levels - 1,) if self.use_levels == "last" else (num_levels // 2,)

    @property
    def token_kinds(self) -> tuple[int, ...]:
        """Values of the cache's `token_kind` that cross-attention reads. Raises StageError for none."""
        parts = {"all": TOKEN_KINDS, "prompt": PROMPT_KINDS, **{kind: (kind,) for kind in TOKEN_KINDS}}
        names = [name.strip() for name in self.cross_tokens.split(",")]
        if unknown := [name for name in names if name not in parts]:
            raise StageError(f"cross_tokens has {unknown[0]!r}, it may have {', '.join(parts)}")
        streams = {"both": TOKEN_KINDS, "prompt": PROMPT_KINDS, "generated": GENERATED_KINDS}
        kinds = {kind for name in names for kind in parts[name]} & set(streams[self.use_streams])
        if not kinds:
            raise StageError(
                f"cross_tokens {self.cross_tokens!r} has no token of the {self.use_streams} stream, to which "
                "use_streams limits it: change one of the two"
            )
        return tuple(number for number, kind in enumerate(TOKEN_KINDS, start=1) if kind in kinds)


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
    guidance: GuidanceShape = field(default_factory=GuidanceShape)
    view: LatentView = field(default_factory=LatentView)

    @property
    def token_kinds(self) -> tuple[int, ...]:
        """Kinds of thinker tokens that the model reads one by one; none where means are enough."""
        crosses = self.variant != "jepa" and self.guidance.kind == "cross"
        return self.guidance.token_kinds if crosses else ()
