"""What a forecast is punished for."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from thinkjepa.stages.train.setting_checks import check_choice, check_not_negative, check_positive

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
