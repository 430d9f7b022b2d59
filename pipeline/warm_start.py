"""From `--init-from` to a checkpoint's folder, found as the frozen models are."""

from __future__ import annotations

from pathlib import Path

from thinkjepa.pipeline.project import model_place
from thinkjepa.stages.extract.weights import find_model, weights_digest
from thinkjepa.stages.train.settings import TrainSettings
from thinkjepa.stages.train.warm_start import WarmStart

HERE = Path()


def find_warm_start(settings: TrainSettings, project: Path = HERE) -> WarmStart | None:
    """The folder in `project` or the hub's snapshot, None where training starts at random.

    Raises StageError where there is no such checkpoint.
    """
    if not settings.init_from or settings.variant == "vlm":  # a matrix of variants shares its settings
        return None
    found = find_model(model_place(settings.init_from, project), revision="main", role="init-from")
    return WarmStart(path=found.path, digest=weights_digest(found))
