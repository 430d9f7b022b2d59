"""From `--init-from` to a checkpoint's folder, found as the frozen models are."""

from __future__ import annotations

from thinkjepa.stages.extract.weights import find_model, weights_digest
from thinkjepa.stages.train.settings import TrainSettings
from thinkjepa.stages.train.warm_start import WarmStart


def find_warm_start(settings: TrainSettings) -> WarmStart | None:
    """The local folder or the hub's snapshot, None where training starts at random. Raises StageError."""
    if not settings.init_from or settings.variant == "vlm":  # a matrix of variants shares its settings
        return None
    found = find_model(settings.init_from, revision="main", role="init-from")
    return WarmStart(path=found.path, digest=weights_digest(found))
