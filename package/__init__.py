"""ThinkJEPA: forecast video latents with a JEPA predictor guided by a vision-language model.

`thinkjepa.cache` reads and writes feature caches, `thinkjepa.stages` extracts, trains, evaluates and
predicts, and `thinkjepa.pipeline` holds the command lines.
"""

from importlib.metadata import version

__version__ = version("thinkjepa")
