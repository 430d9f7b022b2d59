"""A trained run on a new video: through both frozen models, then through the predictor."""

from thinkjepa.stages.predict.hands import PredictedHands
from thinkjepa.stages.predict.prediction import Prediction, predict
from thinkjepa.stages.predict.splits import ChosenFrames, SplitChoice

__all__ = ["ChosenFrames", "PredictedHands", "Prediction", "SplitChoice", "predict"]
