"""What a training run can be told, with the paper's settings as defaults."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from thinkjepa.stages.data.joints import JOINTS_HELP
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.shapes import Anchor, AttentionPattern, TrunkShape, Variant

Task = Literal["auto", "latent", "trajectory"]
Device = Literal["auto", "cpu"]
Precision = Literal["fp32", "bf16"]

POSITIVE = (
    "epochs",
    "batch_size",
    "clips_per_forward",
    "fusion_width",
    "head_width",
    "learning_rate",
    "head_learning_rate",
    "gate_learning_rate",
)
NOT_NEGATIVE = ("weight_decay", "latent_weight", "trajectory_weight")


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Settings of one run. Numbers are the paper's (arXiv 2603.22281) unless a line says otherwise."""

    variant: Variant = field(
        default="thinkjepa",
        metadata={"help": "Model: thinkjepa (guided), jepa (unguided), vlm (thinker features only)."},
    )
    task: Task = field(
        default="auto",
        metadata={
            "help": "What is predicted: latent (the future window's), trajectory (hand joints too, read off "
            "them), or auto (trajectory where clips have labels)."
        },
    )
    joints: str = field(default="auto", metadata={"help": JOINTS_HELP})
    anchor: Anchor = field(
        default="none",
        metadata={
            "help": "Joints are predicted as they are (none, the paper's) or as displacements from the last "
            "observed pose (last_pose), which prediction then needs."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of initial weights and data order."})
    epochs: int = field(default=200, metadata={"help": "Passes over the training clips."})
    batch_size: int = field(
        default=32, metadata={"help": "Clips per optimiser step, over all processes together."}
    )
    clips_per_forward: int = field(
        default=4,
        metadata={
            "help": "Clips that go through the model at once on a process; gradients of a step's clips are "
            "summed. About 3 GB a clip at the paper's sizes in fp32 (ours)."
        },
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "AdamW's learning rate, constant."})
    head_learning_rate: float = field(
        default=1e-3, metadata={"help": "Learning rate of the trajectory head."}
    )
    gate_learning_rate: float = field(
        default=1e-3,
        metadata={"help": "Learning rate of the guidance gates, which start at zero (ours, as the head's)."},
    )
    weight_decay: float = field(default=1e-4, metadata={"help": "AdamW's weight decay, on matrices only."})
    depth: int = field(default=12, metadata={"help": "Transformer blocks of the predictor."})
    width: int = field(default=384, metadata={"help": "Channels of the predictor."})
    heads: int = field(
        default=12,
        metadata={"help": "Attention heads of the predictor (V-JEPA 2's published predictors have 12)."},
    )
    fusion_width: int = field(
        default=512, metadata={"help": "Hidden channels of the pyramid's MLP at each depth."}
    )
    head_width: int = field(default=256, metadata={"help": "Channels of the trajectory head (ours)."})
    latent_weight: float = field(default=1.0, metadata={"help": "Weight of the latents' mean squared error."})
    trajectory_weight: float = field(
        default=1.0, metadata={"help": "Weight of the joints' mean squared error (m^2, by confidence)."}
    )
    attention: AttentionPattern = field(
        default="frame_causal",
        metadata={"help": "Who sees whom: frame_causal (own and earlier latent steps) or bidirectional."},
    )
    device: Device = field(
        default="auto", metadata={"help": "Where to train: auto (an accelerator if there is one) or cpu."}
    )
    precision: Precision = field(
        default="fp32", metadata={"help": "Arithmetic of forward and backward: fp32 or bf16 (autocast)."}
    )

    def __post_init__(self) -> None:
        _check_choice("variant", self.variant, get_args(Variant))
        _check_choice("task", self.task, get_args(Task))
        _check_choice("anchor", self.anchor, get_args(Anchor))
        _check_choice("attention", self.attention, get_args(AttentionPattern))
        _check_choice("device", self.device, get_args(Device))
        _check_choice("precision", self.precision, get_args(Precision))
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise StageError(f"{name} is {getattr(self, name)}, it must be above 0")
        for name in NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise StageError(f"{name} is {getattr(self, name)}, it must be 0 or above")
        _ = self.trunk  # raises where depth, width and heads do not fit together

    @property
    def trunk(self) -> TrunkShape:
        return TrunkShape(depth=self.depth, width=self.width, heads=self.heads, attention=self.attention)


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise StageError(f"{name} is {value!r}, it must be one of {', '.join(allowed)}")
