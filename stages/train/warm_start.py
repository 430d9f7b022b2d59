"""Start from a released V-JEPA 2 checkpoint's predictor instead of random weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.model import ForecastModel
from thinkjepa.stages.train.variants import Jepa, ThinkJepa
from thinkjepa.stages.train.vjepa2 import PREFIX, copy_vjepa2_predictor


@dataclass(frozen=True, slots=True)
class WarmStart:
    """A checkpoint in transformers' layout: its folder, and its weights' digest, which a run records."""

    path: Path
    digest: str


def start_from(model: ForecastModel, checkpoint: WarmStart) -> None:
    """Overwrite the predictor's weights; pyramid and head stay as they are.

    Raises StageError where the checkpoint has no predictor of this very shape, or the variant has none.
    """
    if not isinstance(model.forecaster, Jepa | ThinkJepa):
        raise StageError(
            "variant vlm has no predictor that could start from a checkpoint: leave out init_from"
        )
    copy_vjepa2_predictor(
        model.forecaster.predictor,
        weights=_predictor_weights(checkpoint.path),
        config=_config(checkpoint.path),
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(f"init_from {str(folder)!r}: config.json cannot be read: {error}") from error
    return dict(config)


def _predictor_weights(folder: Path) -> dict[str, Tensor]:
    """The predictor's tensors of all safetensors files; the encoder's are not read."""
    weights = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name.startswith(PREFIX)]  # noqa: SIM118
                weights.update({name: file.get_tensor(name).float() for name in names})
        except (OSError, SafetensorError) as error:
            raise StageError(f"init_from: {str(path)!r} cannot be read: {error}") from error
    if not weights:
        raise StageError(
            f"init_from {str(folder)!r}: no weight's name begins with {PREFIX!r}: it is no V-JEPA 2 with "
            "a predictor"
        )
    return weights


def _weight_files(folder: Path) -> Sequence[Path]:
    if not (files := sorted(folder.glob("*.safetensors"))):
        raise StageError(f"init_from {str(folder)!r}: no .safetensors file; other formats are never loaded")
    return files
