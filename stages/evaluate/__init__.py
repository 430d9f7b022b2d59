"""Stage two: measure trained runs."""

from thinkjepa.stages.evaluate.evaluation import evaluate

__all__ = ["evaluate"]
