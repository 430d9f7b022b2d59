"""Sizes and choices that a model is built from: plain records, written to `run.json` and read back.

Shape letters, as tensors' names end in them all over `stages.train`:

    B batch         T latent steps    P patches of a step   N tokens of the trunk   M future windows
    L levels        S streams, or thinker tokens, of a level
    D dim of a stored state           W width of the predictor   Y depth of a block
    H heads         E dims of a head  R rotated dims of a head
    F observed frames   K frames of a latent step   J joints   Q queries of the head   I inputs of poses
    U blocks of queries and V blocks of keys, of the compiled attention kernel
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass as pydantic_dataclass

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.settings import Settings, part_of, setting
from thinkjepa.stages.train.model.reading import (
    FIRST_STREAMS,
    GuidanceForm,
    GuidanceKind,
    GuidanceShape,
    LevelAssignment,
    LevelChoice,
    TokenReading,
)

AttentionPattern = Literal["frame_causal", "bidirectional"]

Variant = Literal["thinkjepa", "jepa", "vlm", "poses"]

WITHOUT_THINKER: frozenset[Variant] = frozenset({"jepa", "poses"})
"""Variants that read no thinker states: their runs are the same whatever the thinker was asked."""

WITHOUT_LATENTS: frozenset[Variant] = frozenset({"poses"})
"""Variants that neither read nor forecast latents: their cache is read for labels and frame times alone."""

WITHOUT_PREDICTOR: frozenset[Variant] = frozenset({"vlm", "poses"})
"""Variants without a predictor of observed latents, which could start from a checkpoint."""

Anchor = Literal["none", "last_pose"]

LatentTarget = Literal["latents", "change"]

HeadInputs = Literal["poses", "latents"]

SourceKind = Literal["own", "shuffled", "none", "history", "oracle"]


def reads_joints_directly(variant: Variant, head_inputs: HeadInputs) -> bool:
    """True if joints are read off poses and states by a reader, not off latents."""
    return variant in WITHOUT_LATENTS or (variant == "vlm" and head_inputs == "poses")


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
    """The thinker's pooled states of one clip: number of levels (stored layers), their dim, their streams."""

    levels: int
    dim: int
    streams: tuple[str, ...] = FIRST_STREAMS


@dataclass(frozen=True, slots=True)
class LatentTransform:
    """Transform of the stored latents, observed and future alike."""

    pool: int = 1
    """Side, in patches, of the squares that are averaged into one latent."""
    normalised: bool = False
    """Whether each latent is layer-normed over its channels."""


@dataclass(frozen=True, slots=True)
class PredictionTarget:
    """Output of the predictor, and whether latents are whitened per dim in it and in the loss."""

    kind: LatentTarget = "latents"
    whitened: bool = False


@dataclass(frozen=True, slots=True)
class TrunkShape:
    """The stack of transformer blocks: depth, width, heads, and attention pattern."""

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
    """The trajectory head: which joints, at how many frames of a latent step, relative to what, how wide.

    `inputs` says whether it reads the observed poses next to the latents. With a `reader_depth` it reads the
    states of a `StepReader` of so many blocks instead of latents.
    """

    joints: tuple[str, ...]
    frames_per_step: int
    anchor: Anchor
    width: int
    inputs: HeadInputs = "poses"
    reader_depth: int = 0

    @property
    def reads_poses(self) -> bool:
        return self.inputs == "poses"


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
    view: LatentTransform = field(default_factory=LatentTransform)
    target: PredictionTarget = field(default_factory=PredictionTarget)
    windows: int = 1
    """Future windows that training covers. More are extrapolated."""

    @property
    def has_latents(self) -> bool:
        """True if the model reads and forecasts latents."""
        return self.variant not in WITHOUT_LATENTS

    @property
    def trained_steps(self) -> int:
        """Latent steps of the future that training covers."""
        return self.windows * self.grid.future_steps

    @property
    def reading(self) -> TokenReading:
        """The thinker's states that the model reads one by one. None where means are enough."""
        return TokenReading() if self.thinker is None else self.guidance.reading()


AttentionKernel = Literal["blocks", "flex"]


@pydantic_dataclass(frozen=True)
class PredictorSettings(Settings):
    """The stack of blocks that every variant shares."""

    PANEL: ClassVar[str] = "Predictor"

    depth: int = setting(12, "Transformer blocks of the predictor.")
    width: int = setting(384, "Channels of the predictor.")
    heads: int = setting(12, "Attention heads of the predictor (V-JEPA 2's published predictors have 12).")
    attention: AttentionPattern = setting(
        "frame_causal",
        "Pattern of attention: frame_causal (own and earlier latent steps) or bidirectional.",
        rare=True,
    )
    attention_kernel: AttentionKernel = setting(
        "blocks",
        "How attention is computed: blocks (a call for each latent step, on any device) or flex "
        "(FlexAttention, compiled, on a GPU). The result is the same (ours).",
        rare=True,
    )
    latent_pool: int = setting(
        1,
        "Side of the squares of patches that are averaged into one latent, observed and future: "
        "2 makes a quarter of the tokens (ours).",
        rare=True,
        ge=1,
    )
    latent_target: LatentTarget = setting(
        "change",
        "Output of the predictor: change of the latents from the last observed step, which starts at "
        "zero, so that training starts as latent persistence (ours), or latents (the paper's, and what a "
        "checkpoint of --init-from predicts). Variant vlm, which reads no latents, puts out latents.",
    )
    whiten_latents: bool = setting(
        False,
        "Whiten latents inside the predictor and in its loss: each dim in its target's deviation over "
        "the training clips. Metrics stay in the encoder's units (ours).",
    )
    init_from: str = setting(
        "",
        "V-JEPA 2 checkpoint (hub name or local folder) whose predictor the training starts "
        "from; depth, width and heads must be its own. Only for variants jepa and thinkjepa.",
        rare=True,
    )

    @property
    def trunk(self) -> TrunkShape:
        """The trunk of these settings. Raises StageError where width and heads do not fit together."""
        return part_of(self, TrunkShape)


def parse_source(text: str) -> tuple[SourceKind, tuple[str, ...]]:
    """The kind of a `guidance_source`, and the columns of an oracle. Raises StageError for another text."""
    kind, _, named = text.partition(":")
    columns = tuple(name.strip() for name in named.split(","))
    if kind == "oracle" and all(columns) and len(set(columns)) == len(columns):
        return "oracle", columns
    if text in ("own", "shuffled", "none", "history"):
        return text, ()  # type: ignore[return-value]
    raise StageError(
        f"--guidance-source {text!r}: give own, shuffled, none, history, or oracle:COLUMN[,COLUMN...]"
    )


@pydantic_dataclass(frozen=True)
class GuidanceSettings(Settings):
    """The pyramid: from the thinker's layers and streams to the predictor's depths."""

    PANEL: ClassVar[str] = "Guidance"

    guidance: GuidanceKind = setting(
        "film",
        "How variant thinkjepa is guided at each depth: film (scale and shift of a block's input), adaln "
        "(of its normed inputs, and its outputs' sizes), cross (attention over slots and text, with their "
        "times and places) or spatial (film of each patch, from the slots nearest to it, ours). Variant "
        "vlm reads the same states.",
    )
    levels: LevelAssignment = setting(
        "fixed", "Thinker layer that guides a depth: fixed (early to late) or a learned mixture."
    )
    use_levels: LevelChoice = setting(
        "all", "Stored thinker layers that are used: all, last or middle.", rare=True
    )
    use_streams: str = setting(
        "auto",
        "Means of the thinker's states that are used: some of prompt, visual, text (after the visual "
        "tokens), last (of the prompt), generated, with commas between; auto: all that are stored, "
        "prompt only where its parts are not (the paper: prompt,generated).",
        rare=True,
    )
    cross_tokens: str = setting(
        "auto",
        "States that --guidance cross reads: some of slots, text, generated (reasoning and answer), "
        "reasoning, answer, or of all tokens, where they are kept: all, prompt (text and visual), visual. "
        "auto: slots,text,generated, or all where no slots are stored.",
        rare=True,
    )
    guidance_source: str = setting(
        "own",
        "States that guide, as controls of equal capacity: own (the thinker's of the clip), shuffled (of "
        "another clip), none (zeros), history (the encoder's of the thinker's frames: extract "
        "--keep-history), or oracle:COLUMN[,COLUMN...] (one-hots of --oracle-table, side by side) (ours).",
        rare=True,
    )
    oracle_table: str = setting(
        "",
        "Table of oracle:COLUMN, csv or parquet, with these columns and clip_id or video (ours).",
        rare=True,
    )
    drop_guidance: float = setting(
        0.0,
        "Share of clips that train without guidance, drawn again at every step, so that one "
        "thinkjepa model forecasts with and without a thinker (ours).",
        rare=True,
        ge=0,
        lt=1,
    )
    guidance_form: GuidanceForm = setting(
        "shared",
        "Form of film and adaln: shared (one projection for all streams, each normed; gates as they "
        "are) or paper (a projection for each stream, a norm over the signature, tanh of the gates).",
        rare=True,
    )
    fusion_width: int = setting(512, "Hidden channels of the pyramid's MLP at each depth.", rare=True, ge=1)

    @property
    def guidance_shape(self) -> GuidanceShape:
        """The guidance of these settings, not yet settled by what a feature set holds."""
        unsettled = GuidanceShape(kind=self.guidance, form=self.guidance_form)
        names = ("levels", "use_levels", "use_streams", "cross_tokens")
        return replace(unsettled, **{name: getattr(self, name) for name in names})
