"""Settings of a training run: every field is a flag of thinkjepa-train and a key of params.yaml.

Groups are the panels of `--help`; `TrainSettings` has them all. A run records its settings in run.json.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from thinkjepa.stages.data.joints import JOINTS_HELP
from thinkjepa.stages.device import DEVICES, THREADS_HELP, check_device_name
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.settings import DEFAULT_OR_MORE, Settings, setting
from thinkjepa.stages.train.idle import idle_settings
from thinkjepa.stages.train.model.config import (
    WITHOUT_LATENTS,
    WITHOUT_PREDICTOR,
    Anchor,
    GuidanceSettings,
    HeadInputs,
    LatentTransform,
    PredictionTarget,
    PredictorSettings,
    Variant,
    parse_source,
)

Schedule = Literal["constant", "cosine", "paper"]


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """AdamW and the batches it steps on."""

    PANEL: ClassVar[str] = "Optimizer"

    epochs: int = setting(200, "Passes over the training clips.", ge=1)
    batch_size: int = setting(32, "Clips per optimizer step, over all processes together.", ge=1)
    clips_per_forward: int = setting(
        4,
        "Clips that go through the model at once on a process; gradients of a step's clips are "
        "summed. About 3 GB a clip at the paper's sizes in fp32 (ours).",
        rare=True,
        ge=1,
    )
    learning_rate: float = setting(1e-4, "AdamW's learning rate.", gt=0)
    head_learning_rate: float = setting(1e-3, "Learning rate of the trajectory head.", rare=True, gt=0)
    gate_learning_rate: float = setting(
        1e-3,
        "Learning rate of the guidance gates, which start at zero (ours, as the head's).",
        rare=True,
        gt=0,
    )
    schedule: Schedule = setting(
        "constant",
        "Course of the learning rates: constant, cosine (to zero at the end), or paper (the "
        "head's x0.1 after 1/3 and again after 2/3 of all steps, the others constant).",
        rare=True,
    )
    warmup: float = setting(
        0.0, "Share of all steps over which the learning rates rise from zero (ours).", rare=True, ge=0, lt=1
    )
    clip_norm: float = setting(
        0.0, "Gradients of a larger norm are scaled down to it; 0: never (ours).", rare=True, ge=0
    )
    weight_decay: float = setting(
        1e-4, "AdamW's weight decay, on the matrices of linear layers only.", rare=True, ge=0
    )


LatentLoss = Literal["mse", "l1", "smooth_l1"]

TrajectoryUnits = Literal["metres", "spread"]


@dataclass(frozen=True)
class LossSettings(Settings):
    """The loss of a clip: weighted sum of its latents' and its joints' errors."""

    PANEL: ClassVar[str] = "Loss"

    latent_loss: LatentLoss = setting("mse", "Error of the latents: mse (the paper's), l1 or smooth_l1.")
    normalise_targets: bool = setting(
        False,
        "Train on latents that are layer-normed over their channels: the targets, and the "
        "observed ones with them, so that forecasts can be fed back (V-JEPA 2).",
        rare=True,
    )
    rollout_windows: int = setting(
        1,
        "Future windows that are predicted one from the other in training, the loss over all of "
        "them (multi-step loss); the cache needs as many: extract --future-windows.",
        rare=True,
        ge=1,
    )
    next_step_weight: float = setting(
        0.0,
        "Weight of the same error of predicting, at each observed step, the step after it (ours). "
        "Not with bidirectional attention, which sees that step; variant vlm reads none of them.",
        rare=True,
        ge=0,
    )
    latent_weight: float = setting(1.0, "Weight of the latents' error.", rare=True, ge=0)
    trajectory_weight: float = setting(
        1.0, "Weight of the joints' mean squared error (by confidence).", rare=True, ge=0
    )
    trajectory_units: TrajectoryUnits = setting(
        "spread",
        "Joints' errors in the loss: in each joint's deviation over the training clips from where the "
        "head starts (spread, ours, about as large as the latents') or in metres (the paper's; hundreds "
        "of times smaller, so that joints hardly move the predictor).",
        rare=True,
    )


Task = Literal["auto", "latent", "trajectory"]

SelectBy = Literal["auto", "joints", "latents", "loss"]

Precision = Literal["fp32", "bf16"]

Preset = Literal["default", "paper", "release"]

PAPER: Mapping[str, Any] = MappingProxyType(
    {
        "epochs": 200,
        "batch_size": 32,
        "learning_rate": 1e-4,
        "head_learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "schedule": "paper",
        "depth": 12,
        "width": 384,
        "heads": 6,
        "fusion_width": 512,
        "guidance": "film",
        "guidance_form": "paper",
        "use_streams": "prompt,generated",
        "latent_loss": "mse",
        "latent_target": "latents",
        "latent_weight": 1.0,
        "trajectory_weight": 1.0,
        "trajectory_units": "metres",
        "anchor": "none",
        "head_inputs": "latents",
    }
)
"""Settings that differ from the defaults, or may come to, as we take them for those of arXiv 2603.22281.

They were not checked against the paper's text.
"""


@dataclass(frozen=True)
class TrainSettings(PredictorSettings, GuidanceSettings, LossSettings, OptimizerSettings):
    """Settings of one run.

    Numbers are what we take for the paper's (arXiv 2603.22281) unless a line says otherwise.
    """

    PANEL: ClassVar[str] = "Run"
    SECTION: ClassVar[str] = "train"

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "default": {},
            "paper": PAPER,
            "release": PAPER,  # what is another there is how clips are cut
        }
    )

    preset: Preset = setting(
        "default",
        "Settings to start from, which others override: default, paper (what we take for the settings of "
        "arXiv 2603.22281, not checked against its text: 6 heads, the head's schedule, FiLM by stream, a "
        "head of latents alone, errors in metres) or release (the same, for clips of `--preset release`).",
    )
    variant: Variant = setting(
        "thinkjepa",
        "Model: thinkjepa (guided), jepa (unguided), vlm (thinker features only), or poses (hands from the "
        "observed poses alone, without latents and thinker, ours).",
    )
    task: Task = setting(
        "auto",
        "What is predicted: latent (the future window's), trajectory (hand joints too, read off "
        "them), or auto (trajectory where clips have labels).",
    )
    select_by: SelectBy = setting(
        "auto",
        "Figure of the validation clips by which the kept epoch is the best: joints (mean distance, "
        "metres), latents (mean squared error), loss (the weighted sum that is trained), or auto "
        "(joints where they are trained, else latents).",
    )
    joints: str = setting("auto", JOINTS_HELP, rare=True)
    min_confidence: float = setting(
        0.0,
        "Joints whose label has a lower confidence, 0 to 1, count as unknown: in observed poses, losses, "
        "metrics and baselines, in the run's evaluations too.",
        rare=True,
        ge=0,
        le=1,
    )
    anchor: Anchor = setting(
        "none",
        "Joints are predicted also where no pose was observed (none, the paper's), or only as "
        "displacements from the last observed pose (last_pose), which prediction then needs.",
        rare=True,
    )
    head_inputs: HeadInputs = setting(
        "poses",
        "What the head reads: the latents (vlm: the thinker's states) with the observed poses, starting as "
        "a ridge regression on these (poses, ours), or latents alone (the paper's).",
        rare=True,
    )
    reader_depth: int = setting(
        2,
        "Transformer blocks, of the predictor's width, that read joints off the observed poses, in variant "
        "vlm with the thinker's states; only there and in poses (ours).",
        rare=True,
        ge=1,
    )
    drop_poses: float = setting(
        0.1,
        "Share of clips that train as if no pose was observed, drawn again at every step, so that "
        "hands are predicted in videos without labels, too; with --anchor none (ours).",
        rare=True,
        ge=0,
        lt=1,
    )
    head_width: int = setting(256, "Channels of the trajectory head (ours).", rare=True, ge=1)
    share: float = setting(
        1.0,
        "Share of the training groups that are trained on, for learning curves, above 0, at most 1: at least "
        "one group, drawn by --split-seed, those of 0.1 among those of 0.3.",
        rare=True,
        gt=0,
        le=1,
    )
    seed: int = setting(0, "Seed of initial weights and data order.")
    threads: int = setting(0, THREADS_HELP, ge=0, allowed=DEFAULT_OR_MORE)
    device: str = setting("auto", f"Where to train: {DEVICES}.")
    precision: Precision = setting(
        "fp32", "Arithmetic of forward and backward: fp32 or bf16 (autocast).", rare=True
    )
    tracker: str = setting(
        "tensorboard",
        "Where curves go while training: tensorboard (RUN/tensorboard), none, or a tracker by "
        "accelerate's name (wandb, mlflow, ...) that is installed.",
        rare=True,
    )
    save_every_s: float = setting(
        300.0,
        "Seconds of training between saves within an epoch, which a killed run continues "
        "from; each epoch's end is saved too.",
        rare=True,
        ge=0,
    )

    def __post_init__(self) -> None:
        """Refuse what fits no model: heads that do not divide the width, token kinds that no stream has."""
        _ = self.trunk
        self.guidance_shape.check_names()
        if parse_source(self.guidance_source)[0] == "oracle" and not self.oracle_table:
            raise StageError(
                f"--guidance-source {self.guidance_source} needs a table with the column: name it with "
                "--oracle-table"
            )
        check_device_name(self.device)
        has_predictor = self.variant not in WITHOUT_PREDICTOR
        if self.next_step_weight and self.attention == "bidirectional" and has_predictor:
            raise StageError(
                f"--next-step-weight {self.next_step_weight:g} with --attention bidirectional, which sees "
                "the step that is to be predicted: use --attention frame_causal, or leave the weight at 0"
            )
        if self.variant in WITHOUT_LATENTS:
            _check_joints_are_trained(self)
        if self.init_from and self.whiten_latents and has_predictor:
            raise StageError(
                "--whiten-latents with --init-from: a checkpoint's predictor reads latents as the encoder "
                "gives them; leave out one of the two"
            )

    @property
    def drops_poses(self) -> bool:
        """True if some clips train without their observed poses."""
        return self.drop_poses > 0 and "drop_poses" not in idle_settings(asdict(self))

    def in_effect(self) -> "TrainSettings":
        """The same run, idle settings of its variant at their defaults: equal runs then look equal."""
        defaults: dict[str, Any] = {item.name: item.default for item in fields(self)}
        return replace(self, **{name: defaults[name] for name in idle_settings(asdict(self))})

    @property
    def transform(self) -> LatentTransform:
        """Transform of the stored latents. A variant without latents transforms none."""
        if self.variant in WITHOUT_LATENTS:
            return LatentTransform()
        return LatentTransform(pool=self.latent_pool, normalised=self.normalise_targets)

    @property
    def target(self) -> PredictionTarget:
        """Output of the predictor. Variant `vlm` knows no latents that a change could be added to."""
        if self.variant in WITHOUT_LATENTS:
            return PredictionTarget()
        kind = "latents" if self.variant == "vlm" else self.latent_target
        return PredictionTarget(kind, whitened=self.whiten_latents)

    @property
    def predicts_next_steps(self) -> bool:
        """True if the loss covers the step after each observed one, which only a predictor reads."""
        return self.next_step_weight > 0 and self.variant not in WITHOUT_PREDICTOR

    @property
    def starts_from_checkpoint(self) -> bool:
        """True if `init_from` has a part in the run: a matrix of variants shares its settings."""
        return bool(self.init_from) and self.variant not in WITHOUT_PREDICTOR


def _check_joints_are_trained(settings: TrainSettings) -> None:
    """Raises StageError where a variant of joints alone is asked for anything else."""
    for name, value in (("task", "latent"), ("select_by", "latents"), ("trajectory_weight", 0)):
        if getattr(settings, name) == value:
            raise StageError(
                f"--{name.replace('_', '-')} {value} with --variant {settings.variant}, which forecasts "
                "hands and no latents: leave it out, or train another variant"
            )
