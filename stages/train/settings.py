"""The course of the learning rates: a pure function of the step, so that a resumed run needs no state."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args

from thinkjepa.stages.data.joints import JOINTS_HELP
from thinkjepa.stages.device import DEVICES, THREADS_HELP, check_device_name, check_threads
from thinkjepa.stages.settings import check_choice, check_not_negative, check_positive, check_share
from thinkjepa.stages.train.model.config import (
    Anchor,
    GuidanceSettings,
    LatentTransform,
    PredictorSettings,
    Variant,
)

Schedule = Literal["constant", "cosine", "paper"]

PAPER_DECAY = 0.1
"""The head's rate after one and after two thirds of training, each time (arXiv 2603.22281)."""


def rate_factor(schedule: Schedule, *, part: str, step: int, total_steps: int, warmup: float) -> float:
    """What a part's learning rate is multiplied by at `step`, counted from 0 over the whole run.

    `part` is "head" or another part of the model: schedule `paper` lowers the head's rate only. `warmup` is
    the share of the steps over which rates rise linearly; the last of them has the full rate.
    """
    warmup_steps = round(warmup * total_steps)
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if schedule == "cosine":
        done = max(0, step - warmup_steps) / max(1, total_steps - warmup_steps)
        return rise * 0.5 * (1 + math.cos(math.pi * done))
    if schedule == "paper" and part == "head":
        return rise * PAPER_DECAY ** (3 * step // total_steps)
    return rise


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


LatentLoss = Literal["mse", "l1", "smooth_l1"]

TrajectoryUnits = Literal["metres", "spread"]


@dataclass(frozen=True)
class LossSettings:
    """The loss of a clip: weighted sum of its latents' and its joints' errors."""

    PANEL: ClassVar[str] = "Loss"

    latent_loss: LatentLoss = field(
        default="mse", metadata={"help": "Error of the latents: mse (the paper's), l1 or smooth_l1."}
    )
    normalise_targets: bool = field(
        default=False,
        metadata={
            "rare": True,
            "help": "Train on latents that are layer-normed over their channels: the targets, and the "
            "observed ones with them, so that forecasts can be fed back (V-JEPA 2).",
        },
    )
    rollout_windows: int = field(
        default=1,
        metadata={
            "rare": True,
            "help": "Future windows that are predicted one from the other in training, the loss over all of "
            "them (multi-step loss); the cache needs as many: extract --future-windows.",
        },
    )
    context_weight: float = field(
        default=0.0,
        metadata={
            "rare": True,
            "help": "Weight of the same error at the observed steps, beside the future ones (dense loss, "
            "V-JEPA 2.1); variant vlm, which sees none, has no part in it.",
        },
    )
    latent_weight: float = field(
        default=1.0, metadata={"rare": True, "help": "Weight of the latents' error."}
    )
    trajectory_weight: float = field(
        default=1.0,
        metadata={"rare": True, "help": "Weight of the joints' mean squared error (by confidence)."},
    )
    trajectory_units: TrajectoryUnits = field(
        default="metres",
        metadata={
            "rare": True,
            "help": "Joints' errors in the loss: in metres (the paper's; hundreds of times smaller than the "
            "latents') or in each joint's spread over the training clips (ours, about as large as them).",
        },
    )

    def check_losses(self) -> None:
        """Raises StageError for what cannot be."""
        check_choice(self, "latent_loss", get_args(LatentLoss))
        check_choice(self, "trajectory_units", get_args(TrajectoryUnits))
        check_positive(self, "rollout_windows")
        check_not_negative(self, "latent_weight", "trajectory_weight", "context_weight")


Task = Literal["auto", "latent", "trajectory"]

Precision = Literal["fp32", "bf16"]

Preset = Literal["default", "paper", "release"]

PAPER: Mapping[str, Any] = MappingProxyType(
    {
        "epochs": 200,
        "batch_size": 32,  # 16 a GPU on two GPUs
        "learning_rate": 1e-4,
        "head_learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "schedule": "paper",
        "depth": 12,
        "width": 384,
        "heads": 6,
        "fusion_width": 512,
        "guidance": "film",
        "latent_loss": "mse",
        "latent_weight": 1.0,
        "trajectory_weight": 1.0,
        "anchor": "none",
    }
)
"""The published settings (arXiv 2603.22281) that differ from the defaults, or may come to."""

ONLY_OF_GUIDANCE = (
    "guidance",
    "levels",
    "cross_tokens",
    "drop_guidance",
    "fusion_width",
    "gate_learning_rate",
)

IDLE: Mapping[Variant, tuple[str, ...]] = MappingProxyType(
    {
        "thinkjepa": (),
        "jepa": (*ONLY_OF_GUIDANCE, "use_levels", "use_streams"),
        "vlm": ("drop_guidance", "fusion_width", "init_from", "context_weight"),
    }
)
"""Settings that do nothing in a variant."""

ONLY_OF_CROSS = ("guidance", "levels", "cross_tokens", "gate_learning_rate")
"""What does nothing in `vlm` either, unless it reads tokens."""


@dataclass(frozen=True)
class TrainSettings(PredictorSettings, GuidanceSettings, LossSettings, OptimiserSettings):
    """Settings of one run. Numbers are the paper's (arXiv 2603.22281) unless a line says otherwise."""

    PANEL: ClassVar[str] = "Run"
    SECTION: ClassVar[str] = "train"

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "default": {},
            "paper": PAPER,
            "release": PAPER,  # the code that was published with it names the same numbers
        }
    )

    preset: Preset = field(
        default="default",
        metadata={
            "help": "Settings to start from, which others override: default, paper (6 heads, the paper's "
            "schedule) or release (the same, for clips of `--preset release`)."
        },
    )
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
    joints: str = field(default="auto", metadata={"rare": True, "help": JOINTS_HELP})
    anchor: Anchor = field(
        default="none",
        metadata={
            "rare": True,
            "help": "Joints are predicted as they are (none, the paper's) or as displacements from the last "
            "observed pose (last_pose), which prediction then needs.",
        },
    )
    head_width: int = field(
        default=256, metadata={"rare": True, "help": "Channels of the trajectory head (ours)."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of initial weights and data order."})
    threads: int = field(default=0, metadata={"help": THREADS_HELP})
    device: str = field(default="auto", metadata={"help": f"Where to train: {DEVICES}."})
    precision: Precision = field(
        default="fp32",
        metadata={"rare": True, "help": "Arithmetic of forward and backward: fp32 or bf16 (autocast)."},
    )
    tracker: str = field(
        default="tensorboard",
        metadata={
            "rare": True,
            "help": "Where curves go while training: tensorboard (RUN/tensorboard), none, or a tracker by "
            "accelerate's name (wandb, mlflow, ...) that is installed.",
        },
    )
    save_every_s: float = field(
        default=300.0,
        metadata={
            "rare": True,
            "help": "Seconds of training between saves within an epoch, which a run that was killed goes on "
            "from; each epoch's end is saved too.",
        },
    )

    def __post_init__(self) -> None:
        self.check_predictor()
        self.check_guidance()
        self.check_losses()
        self.check_optimiser()
        check_choice(self, "preset", self.PRESETS)
        check_choice(self, "variant", get_args(Variant))
        check_choice(self, "task", get_args(Task))
        check_choice(self, "anchor", get_args(Anchor))
        check_device_name(self.device)
        check_threads(self.threads)
        check_choice(self, "precision", get_args(Precision))
        check_positive(self, "head_width")
        check_not_negative(self, "save_every_s")

    def in_effect(self) -> "TrainSettings":
        """The same run, idle settings of its variant at their defaults: equal runs then look equal."""
        defaults: dict[str, Any] = {item.name: item.default for item in fields(self)}
        idle = IDLE[self.variant]
        if self.variant == "vlm" and self.guidance != "cross":
            idle += ONLY_OF_CROSS
        return replace(self, **{name: defaults[name] for name in idle})

    @property
    def transform(self) -> LatentTransform:
        """What is done to stored latents, observed and future alike."""
        return LatentTransform(pool=self.latent_pool, normalised=self.normalise_targets)

    @property
    def token_kinds(self) -> tuple[int, ...]:
        """Kinds of thinker tokens that are read one by one; none where means are enough."""
        return self.guidance_shape.kinds_read_by(self.variant)
