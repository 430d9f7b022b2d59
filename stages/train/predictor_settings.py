"""The predictor's size, and on which latents it works."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from thinkjepa.stages.train.setting_checks import check_choice, check_positive
from thinkjepa.stages.train.shapes import AttentionPattern, TrunkShape

AttentionKernel = Literal["blocks", "flex"]


@dataclass(frozen=True)
class PredictorSettings:
    """The stack of blocks that every variant shares."""

    PANEL: ClassVar[str] = "Predictor"

    depth: int = field(default=12, metadata={"help": "Transformer blocks of the predictor."})
    width: int = field(default=384, metadata={"help": "Channels of the predictor."})
    heads: int = field(
        default=12,
        metadata={"help": "Attention heads of the predictor (V-JEPA 2's published predictors have 12)."},
    )
    attention: AttentionPattern = field(
        default="frame_causal",
        metadata={
            "rare": True,
            "help": "Who sees whom: frame_causal (own and earlier latent steps) or bidirectional.",
        },
    )
    attention_kernel: AttentionKernel = field(
        default="blocks",
        metadata={
            "rare": True,
            "help": "How attention is computed: blocks (a call for each latent step, on any device) or flex "
            "(FlexAttention, compiled, on a GPU). The result is the same (ours).",
        },
    )
    latent_pool: int = field(
        default=1,
        metadata={
            "rare": True,
            "help": "Side of the squares of patches that are averaged into one latent, observed and future: "
            "2 makes a quarter of the tokens (ours).",
        },
    )
    init_from: str = field(
        default="",
        metadata={
            "rare": True,
            "help": "V-JEPA 2 checkpoint (hub name or local folder) whose predictor the training starts "
            "from; depth, width and heads must be its own. Not for variant vlm.",
        },
    )

    def check_predictor(self) -> None:
        """Raises StageError for what cannot be."""
        check_choice(self, "attention", get_args(AttentionPattern))
        check_choice(self, "attention_kernel", get_args(AttentionKernel))
        check_positive(self, "latent_pool")
        _ = self.trunk  # raises where depth, width and heads do not fit together

    @property
    def trunk(self) -> TrunkShape:
        return TrunkShape(depth=self.depth, width=self.width, heads=self.heads, attention=self.attention)
