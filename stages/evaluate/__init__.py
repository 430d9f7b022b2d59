"""Stage two: measure trained runs, and compare them."""

from thinkjepa.stages.evaluate.comparison import compare
from thinkjepa.stages.evaluate.evaluation import evaluate
from thinkjepa.stages.evaluate.run_groups import EvaluatedRun

__all__ = ["EvaluatedRun", "compare", "evaluate"]
