"""How far a fit has come: its learning curve and the best weights so far.

Weights on disk: safetensors files named by their content, and a run's model read back.

A name that follows from the content lets a workflow tool bring back an older `run.json` and still find the
weights it speaks of, since a later run never overwrites them.

An interrupted fit on disk, so that training again continues it, to the same bits.

One safetensors file: weights, optimiser state and the best weights so far as tensors; learning curve and the
key of the run in the header. Nothing else is needed, since data order is a function of (seed, epoch, step).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from thinkjepa.cache.disk.files import replace_file
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.model.config import (
    GuidanceShape,
    HeadShape,
    LatentGrid,
    LatentTransform,
    ModelShape,
    ThinkerShape,
    TrunkShape,
)
from thinkjepa.stages.train.model.forecast import ForecastModel, build_model


@dataclass(frozen=True, slots=True)
class EpochLosses:
    """Losses of one epoch: of the training clips as it went along, of validation after it.

    The loss is the weighted sum that is trained on; of its parts, the latents' mean squared error and, where
    trajectories are predicted, the joints' mean distance in metres.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    validation_latent_error: float
    validation_distance_m: float | None = None


class PartialEpoch(NamedTuple):
    """What is done of the epoch after the curve: its steps, and the sum of their clips' losses."""

    steps_done: int = 0
    total_loss: float = 0.0


@dataclass(frozen=True, slots=True)
class FitState:
    """The learning curve so far, and the weights of the epoch that was best on validation (on the CPU)."""

    curve: tuple[EpochLosses, ...] = ()
    best_weights: Mapping[str, Tensor] = field(default_factory=dict)
    partial: PartialEpoch = field(default_factory=PartialEpoch)

    @property
    def best(self) -> EpochLosses:
        """The epoch of lowest validation loss; the first of equals."""
        return min(self.curve, key=lambda losses: losses.validation_loss)

    def after(self, losses: EpochLosses, model: nn.Module) -> "FitState":
        """The state after one more epoch, which left `model` as it is."""
        if self.curve and losses.validation_loss >= self.best.validation_loss:
            return FitState((*self.curve, losses), self.best_weights)
        weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        return FitState((*self.curve, losses), weights)


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
        view=LatentTransform(**record.get("view", {})),
    )


MODEL, OPTIMIZER, BEST = "model/", "optimizer/", "best/"


@dataclass(frozen=True, slots=True)
class ResumeFile:
    """Where an unfinished fit is kept. `key` identifies what determines the run: another one starts anew."""

    path: Path
    key: str

    def save(self, state: FitState, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Replace the file by the fit as it stands after an epoch, or within one."""
        tensors = _prefixed(MODEL, model.state_dict()) | _prefixed(BEST, state.best_weights)
        tensors |= _prefixed(OPTIMIZER, _flat_optimizer_state(optimizer))
        header = {"key": self.key, "curve": json.dumps([asdict(losses) for losses in state.curve])}
        header["partial"] = json.dumps(state.partial)
        header["threads"] = str(torch.get_num_threads())
        replace_file(self.path, safetensors.torch.save(tensors, metadata=header))

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> FitState:
        """Put a kept fit of the same key back into `model` and `optimizer`; else leave them, start at 0."""
        if self._header().get("key") != self.key:
            return FitState()
        tensors = safetensors.torch.load_file(self.path)
        model.load_state_dict(_with_prefix(MODEL, tensors))
        _restore_optimizer_state(optimizer, _with_prefix(OPTIMIZER, tensors))
        return replace(self.peek(), best_weights=_with_prefix(BEST, tensors))

    def peek(self) -> FitState:
        """How far a kept fit of the same key is, without weights."""
        header = self._header()
        if header.get("key") != self.key:
            return FitState()
        curve = tuple(EpochLosses(**losses) for losses in json.loads(header["curve"]))
        return FitState(curve=curve, partial=PartialEpoch(*json.loads(header["partial"])))

    @property
    def holds_another(self) -> bool:
        """Whether a fit of another key is kept here, which saving this one will replace."""
        return self._header().get("key", self.key) != self.key

    def threads(self) -> int:
        """Threads of the fit that is kept here, of whatever key; 0 where there is none."""
        return int(self._header().get("threads", "0"))

    def remove(self) -> None:
        """Called once the run is written: nothing is left to continue, nor of any file in it that was
        being written when a process was killed."""
        for path in (self.path, *self.path.parent.rglob(".*.tmp")):
            path.unlink(missing_ok=True)

    def _header(self) -> dict[str, str]:
        try:
            with safe_open(self.path, framework="pt") as file:
                return dict(file.metadata() or {})
        except (FileNotFoundError, SafetensorError):
            return {}


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _flat_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state by `<parameter number>/<name>`; all of it is tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{number}/{name}": value for number, values in state.items() for name, value in values.items()}


def _restore_optimizer_state(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for place, value in flat.items():
        number, name = place.split("/")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
