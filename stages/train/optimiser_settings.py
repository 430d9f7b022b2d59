"""How the weights are changed: steps, rates and their course."""

from dataclasses import dataclass, field
from typing import ClassVar, get_args

from thinkjepa.stages.train.schedule import Schedule
from thinkjepa.stages.train.setting_checks import (
    check_choice,
    check_not_negative,
    check_positive,
    check_share,
)


@dataclass(frozen=True)
class OptimiserSettings:
    """AdamW and the batches it steps on."""

    PANEL: ClassVar[str] = "Optimizer"

    epochs: int = field(default=200, metadata={"help": "Passes over the training clips."})
    batch_size: int = field(
        default=32, metadata={"help": "Clips per optimiser step, over all processes together."}
    )
    clips_per_forward: int = field(
        default=4,
        metadata={
            "rare": True,
            "help": "Clips that go through the model at once on a process; gradients of a step's clips are "
            "summed. About 3 GB a clip at the paper's sizes in fp32 (ours).",
        },
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "AdamW's learning rate."})
    head_learning_rate: float = field(
        default=1e-3, metadata={"rare": True, "help": "Learning rate of the trajectory head."}
    )
    gate_learning_rate: float = field(
        default=1e-3,
        metadata={
            "rare": True,
            "help": "Learning rate of the guidance gates, which start at zero (ours, as the head's).",
        },
    )
    schedule: Schedule = field(
        default="constant",
        metadata={
            "rare": True,
            "help": "Course of the learning rates: constant, cosine (to zero at the end), or paper (the "
            "head's x0.1 after 1/3 and again after 2/3 of all steps, the others constant).",
        },
    )
    warmup: float = field(
        default=0.0,
        metadata={
            "rare": True,
            "help": "Share of all steps over which the learning rates rise from zero (ours).",
        },
    )
    clip_norm: float = field(
        default=0.0,
        metadata={"rare": True, "help": "Gradients of a larger norm are scaled down to it; 0: never (ours)."},
    )
    weight_decay: float = field(
        default=1e-4, metadata={"rare": True, "help": "AdamW's weight decay, on matrices only."}
    )

    def check_optimiser(self) -> None:
        """Raises StageError for what cannot be."""
        check_choice(self, "schedule", get_args(Schedule))
        check_positive(self, "epochs", "batch_size", "clips_per_forward")
        check_positive(self, "learning_rate", "head_learning_rate", "gate_learning_rate")
        check_not_negative(self, "weight_decay", "clip_norm")
        check_share(self, "warmup")
