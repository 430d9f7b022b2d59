"""An interrupted fit on disk, so that training again continues it, to the same bits.

One safetensors file: weights, optimiser state and the best weights so far as tensors; learning curve and the
key of the run in the header. Nothing else is needed, since data order is a function of (seed, epoch, step).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from thinkjepa.cache.disk import replace_file
from thinkjepa.stages.train.fit_state import EpochLosses, FitState, PartialEpoch

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
