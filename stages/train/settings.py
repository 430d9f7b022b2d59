"""What a training run can be told, with the paper's settings as defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args

from thinkjepa.stages.data.joints import JOINTS_HELP
from thinkjepa.stages.device import DEVICES, check_device_name
from thinkjepa.stages.threads import THREADS_HELP, check_threads
from thinkjepa.stages.train.guidance_settings import GuidanceSettings
from thinkjepa.stages.train.loss_settings import LossSettings
from thinkjepa.stages.train.optimiser_settings import OptimiserSettings
from thinkjepa.stages.train.predictor_settings import PredictorSettings
from thinkjepa.stages.train.setting_checks import check_choice, check_not_negative, check_positive
from thinkjepa.stages.train.shapes import Anchor, LatentView, Variant

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
    def view(self) -> LatentView:
        return LatentView(pool=self.latent_pool, normalised=self.normalise_targets)
