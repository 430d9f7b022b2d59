"""Which of the thinker's states guide the predictor, and how."""

from dataclasses import dataclass, field
from typing import ClassVar, get_args

from thinkjepa.stages.train.setting_checks import check_choice, check_positive, check_share
from thinkjepa.stages.train.shapes import (
    GuidanceKind,
    GuidanceShape,
    LevelAssignment,
    LevelChoice,
    StreamChoice,
)


@dataclass(frozen=True)
class GuidanceSettings:
    """The pyramid: from the thinker's layers and streams to the predictor's depths."""

    PANEL: ClassVar[str] = "Guidance"

    guidance: GuidanceKind = field(
        default="film",
        metadata={
            "help": "How variant thinkjepa is guided at each depth: film (scale and shift of a block's "
            "input), adaln (of its normed inputs, and its outputs' sizes) or cross (attention over tokens, "
            "which variant vlm reads too then, beside pooled states)."
        },
    )
    levels: LevelAssignment = field(
        default="fixed",
        metadata={"help": "Thinker layer that guides a depth: fixed (early to late) or a learned mixture."},
    )
    use_levels: LevelChoice = field(
        default="all",
        metadata={"rare": True, "help": "Stored thinker layers that are used: all, last or middle."},
    )
    use_streams: StreamChoice = field(
        default="both",
        metadata={"rare": True, "help": "Thinker states that are used: of prompt, generated, or both."},
    )
    cross_tokens: str = field(
        default="all",
        metadata={
            "rare": True,
            "help": "Tokens that --guidance cross reads: all, or some of prompt (text and visual), text, "
            "visual, generated, reasoning, with commas between.",
        },
    )
    drop_guidance: float = field(
        default=0.0,
        metadata={
            "rare": True,
            "help": "Share of clips that train without guidance, drawn anew at every step, so that one "
            "thinkjepa model forecasts with and without a thinker (ours).",
        },
    )
    fusion_width: int = field(
        default=512, metadata={"rare": True, "help": "Hidden channels of the pyramid's MLP at each depth."}
    )

    def check_guidance(self) -> None:
        """Raises StageError for what cannot be."""
        check_choice(self, "guidance", get_args(GuidanceKind))
        check_choice(self, "levels", get_args(LevelAssignment))
        check_choice(self, "use_levels", get_args(LevelChoice))
        check_choice(self, "use_streams", get_args(StreamChoice))
        check_positive(self, "fusion_width")
        check_share(self, "drop_guidance")
        _ = self.guidance_shape.token_kinds  # raises where no kind of token is left

    @property
    def guidance_shape(self) -> GuidanceShape:
        return GuidanceShape(
            kind=self.guidance,
            levels=self.levels,
            use_levels=self.use_levels,
            use_streams=self.use_streams,
            cross_tokens=self.cross_tokens,
        )
