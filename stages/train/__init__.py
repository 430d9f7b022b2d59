"""Stage two: train a predictor of future latents on a feature cache."""

from thinkjepa.stages.data.splits import SplitRule
from thinkjepa.stages.train.loop import TrainProgress
from thinkjepa.stages.train.plan import plan_costs
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

__all__ = ["SplitRule", "TrainProgress", "TrainSettings", "plan_costs", "train"]
