"""Stage two: train a predictor of future latents on a feature cache."""

from typing import TYPE_CHECKING

from thinkjepa.cache.lazy_names import lazy_names
from thinkjepa.stages.data.splits import SplitRule
from thinkjepa.stages.train.settings import TrainSettings

if TYPE_CHECKING:
    from thinkjepa.stages.train.loop import TrainProgress
    from thinkjepa.stages.train.plan import plan_costs
    from thinkjepa.stages.train.run import train
else:  # settings are read without torch
    __getattr__ = lazy_names(
        __name__, {"loop": ("TrainProgress",), "plan": ("plan_costs",), "run": ("train",)}
    )

__all__ = ["SplitRule", "TrainProgress", "TrainSettings", "plan_costs", "train"]
