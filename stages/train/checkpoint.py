"""Weights on disk: safetensors files named by their content, and a run's model read back.

A name that follows from the content lets a workflow tool bring back an older `run.json` and still find the
weights it speaks of, since a later run never overwrites them.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from thinkjepa.cache.disk import replace_file
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.model import ForecastModel, build_model
from thinkjepa.stages.train.shapes import (
    GuidanceShape,
    HeadShape,
    LatentGrid,
    LatentView,
    ModelShape,
    ThinkerShape,
    TrunkShape,
)

DIGEST_HEX = 12


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A weights file, by its path relative to the run's folder and its sha256."""

    file: str
    sha256: str


def save_weights(run_dir: Path, weights: Mapping[str, Tensor]) -> Checkpoint:
    """Write `RUN/checkpoints/model-<12 hex digits>.safetensors` in one step."""
    content = safetensors.torch.save(dict(weights))
    digest = hashlib.sha256(content).hexdigest()
    file = f"checkpoints/model-{digest[:DIGEST_HEX]}.safetensors"
    replace_file(run_dir / file, content)
    return Checkpoint(file=file, sha256=digest)


def load_model(run_dir: Path, checkpoint: Checkpoint, shape: ModelShape) -> ForecastModel:
    """The trained model of a run, in evaluation mode, on the CPU. Damaged weights are refused."""
    path = run_dir / checkpoint.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StageError(f"weights {str(path)!r} cannot be read ({error.strerror}): train again") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != checkpoint.sha256:
        raise StageError(
            f"weights {str(path)!r} have sha256 {digest[:DIGEST_HEX]}.., run.json says "
            f"{checkpoint.sha256[:DIGEST_HEX]}..: the file is damaged or from another run; train again"
        )
    model = build_model(shape, seed=0)
    model.load_state_dict(safetensors.torch.load(content))
    return model.eval()


def shape_to_json(shape: ModelShape) -> dict[str, Any]:
    return asdict(shape)


def shape_from_json(record: Mapping[str, Any]) -> ModelShape:
    """The inverse of `shape_to_json`."""
    thinker, head = record["thinker"], record["head"]
    return ModelShape(
        variant=record["variant"],
        grid=LatentGrid(**record["grid"]),
        trunk=TrunkShape(**record["trunk"]),
        thinker=None if thinker is None else ThinkerShape(**thinker),
        fusion_width=record["fusion_width"],
        head=None if head is None else HeadShape(**{**head, "joints": tuple(head["joints"])}),
        guidance=GuidanceShape(**record.get("guidance", {})),  # runs from before it was a choice have none
        view=LatentView(**record.get("view", {})),
    )
