"""Training progress on disk: the learning curve, the best weights, and an interrupted run.

Weights are safetensors files named by their content, which `run.json` names: a later run never overwrites
those of an earlier one, so that a workflow tool may bring back an older `run.json`. An interrupted run is one
safetensors file of weights, optimizer state and best weights, with the learning curve and the run's key in
its header. Nothing else is needed to continue to the same bits, since data order is a function of (seed,
epoch, step).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from thinkjepa.cache.disk.files import replace_file
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.model.config import ModelShape
from thinkjepa.stages.train.model.forecast import ForecastModel, build_model


@dataclass(frozen=True, slots=True)
class EpochLosses:
    """Losses of one epoch: of the training clips as it went along, of validation after it.

    The loss is the weighted sum that is minimized. The other columns are, where they are predicted, the
    latents' mean squared error and the joints' mean distance in metres.
    Gradients are norms, over the forecaster's parameters, of the gradient of each part of the loss
    on the first clips of the epoch. `head_share` is the share of the head that the distance is of.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    validation_latent_error: float | None
    validation_distance_m: float | None = None
    latent_gradient: float | None = None
    joint_gradient: float | None = None
    head_share: float | None = None


SELECTED: Mapping[str, str] = {
    "joints": "validation_distance_m",
    "latents": "validation_latent_error",
    "loss": "validation_loss",
}
"""The figure of an epoch by which each value of `--select-by` chooses. Lower is better."""


class PartialEpoch(NamedTuple):
    """Progress within the epoch after the curve: steps done, the sum of their clips' losses, gradients.

    Gradients are those of `EpochLosses`, None before the first step and where no joints are trained.
    """

    steps_done: int = 0
    total_loss: float = 0.0
    latent_gradient: float | None = None
    joint_gradient: float | None = None


@dataclass(frozen=True, slots=True)
class FitState:
    """The learning curve so far, and the weights of the epoch that was best on validation (on the CPU)."""

    curve: tuple[EpochLosses, ...] = ()
    best_weights: Mapping[str, Tensor] = field(default_factory=dict)
    partial: PartialEpoch = field(default_factory=PartialEpoch)
    select_by: str = "loss"
    """A key of `SELECTED`."""

    @property
    def best(self) -> EpochLosses:
        """The epoch that is best on validation: of equal ones, that of the best latents, or the first.

        Epochs that keep the ridge have equal joints.
        """
        return min(self.curve, key=self._order)

    def selected(self, losses: EpochLosses) -> float:
        """The figure of an epoch by which the best one is chosen."""
        return float(getattr(losses, SELECTED[self.select_by]))

    def _order(self, losses: EpochLosses) -> tuple[float, float]:
        return self.selected(losses), losses.validation_latent_error or 0.0

    def after(self, losses: EpochLosses, model: nn.Module) -> "FitState":
        """The state after one more epoch, which left `model` as it is."""
        weights = self.best_weights
        if not self.curve or self._order(losses) < self._order(self.best):
            weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        return FitState((*self.curve, losses), weights, select_by=self.select_by)


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
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise StageError(f"weights {str(path)!r} are no safetensors ({error}): train again") from error
    _check_fit(tensors, shape, path)
    model = build_model(shape, seed=0)
    model.load_state_dict(tensors)
    return model.eval()


def _check_fit(tensors: Mapping[str, Tensor], shape: ModelShape, path: Path) -> None:
    """Raise StageError where weights are not of a model of this shape, before that takes any memory."""
    with torch.device("meta"):
        wanted = {name: value.shape for name, value in build_model(shape, seed=0).state_dict().items()}
    found = {name: value.shape for name, value in tensors.items()}
    if apart := sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name)):
        name = apart[0]
        raise StageError(
            f"weights {str(path)!r} are not of the model that run.json describes ({name} is "
            f"{_size(found.get(name))}, expected {_size(wanted.get(name))}): train again"
        )


def _size(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(tuple(shape))


def shape_from_json(record: Mapping[str, Any], *, path: Path) -> ModelShape:
    """The shape of a model as `run.json` has it. Runs from before guidance was a choice have the default.

    Raises StageError, which names the file `path`, for a record that is none.
    """
    try:
        return TypeAdapter(ModelShape).validate_python(record)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise StageError(
            f"{str(path)!r} is damaged or was changed by hand (model.{where[:100]}: {first['msg']}): "
            "restore it from a copy, or train again"
        ) from error


MODEL, OPTIMIZER, BEST = "model/", "optimizer/", "best/"


@dataclass(frozen=True, slots=True)
class ResumeFile:
    """File of an unfinished run. `key` identifies all that determines a run: another one starts from zero."""

    path: Path
    key: str
    record: Mapping[str, Any] = field(default_factory=dict)
    """What the key is of: settings and features of the run."""

    def save(self, state: FitState, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Replace the file by the state after an epoch, or within one."""
        tensors = _prefixed(MODEL, model.state_dict()) | _prefixed(BEST, state.best_weights)
        tensors |= _prefixed(OPTIMIZER, _flat_optimizer_state(optimizer))
        header = {"key": self.key, "curve": json.dumps([asdict(losses) for losses in state.curve])}
        header["record"] = json.dumps(self.record)
        header["partial"] = json.dumps(state.partial)
        header["threads"] = str(torch.get_num_threads())
        replace_file(self.path, safetensors.torch.save(tensors, metadata=header))

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> FitState:
        """Restore `model` and `optimizer` from a file of the same key. Without one they stay as they are."""
        if self._header().get("key") != self.key:
            return FitState()
        with self._explained():
            tensors = safetensors.torch.load_file(self.path)
            model.load_state_dict(_with_prefix(MODEL, tensors))
            _restore_optimizer_state(optimizer, _with_prefix(OPTIMIZER, tensors))
        return replace(self.peek(), best_weights=_with_prefix(BEST, tensors))

    def peek(self) -> FitState:
        """The state in a file of the same key, without weights."""
        header = self._header()
        if header.get("key") != self.key:
            return FitState()
        with self._explained():
            curve = tuple(EpochLosses(**losses) for losses in json.loads(header["curve"]))
            return FitState(curve=curve, partial=PartialEpoch(*json.loads(header["partial"])))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise StageError(
                f"{str(self.path)!r} is damaged or was changed by hand ({reason}): remove it to start again"
            ) from error

    @property
    def holds_another(self) -> bool:
        """True if the file is of another key. Saving replaces it."""
        return self._header().get("key", self.key) != self.key

    def found_record(self) -> dict[str, Any]:
        """The record in the file, of whatever key; empty where an earlier version wrote it."""
        with self._explained():
            record: dict[str, Any] = dict(json.loads(self._header().get("record", "{}")))
            return record

    def threads(self) -> int:
        """Threads of the run in the file, of whatever key; 0 without a file."""
        with self._explained():
            return int(self._header().get("threads", "0"))

    def remove(self) -> None:
        """Remove the file of a run that is written, and the rest of files whose writing was killed."""
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
    """AdamW's state by `<parameter number>/<name>`, all tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{number}/{name}": value for number, values in state.items() for name, value in values.items()}


def _restore_optimizer_state(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        number, name = key.split("/")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
