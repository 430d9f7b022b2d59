"""One batch of clips: decoded and prepared, then run through the models. A clip that fails is an outcome."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from thinkjepa.cache import ClipFeatures, ClipRow, Failure, FailureStage, Kind
from thinkjepa.stages.data.decoding.client import DecodeError
from thinkjepa.stages.extract.models.pair import FrozenModel, FrozenModels
from thinkjepa.stages.extract.work.frames import ClipDecoding

MODEL_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, KeyError)
"""Errors of processors and models for an input they cannot take. Anything else is a defect."""

ALLOCATOR_WORDS = ("defaultcpuallocator: can't allocate", "not enough memory", "out of memory")
"""Messages of torch's allocators, where they raise no error of a kind of its own."""

REMEDY = "; even one clip at a time does not fit: use smaller models, fewer frames, or a lower --dtype"

Prepared = Sequence[tuple[ClipRow, Any]]
"""Clips with the inputs of one model."""


@dataclass(slots=True)
class RowLimit:
    """Clips per forward of each model: all that were asked for, until memory runs out."""

    by_kind: dict[Kind, int]
    notes: list[str] = field(default_factory=list)
    """Messages for the user that `new_notes` has not returned yet."""

    def halve(self, kind: Kind) -> bool:
        """Halve the rows of later forwards. False where there is one already."""
        before = self.by_kind[kind]
        if before == 1:
            return False
        self.by_kind[kind] = before // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.notes.append(
            f"out of memory with {before} clips in a forward of the {kind}: going on with {before // 2}; "
            f"--batch-size {before // 2} spares the attempt"
        )
        return True

    def new_notes(self) -> tuple[str, ...]:
        """Messages since the last call."""
        notes, self.notes = tuple(self.notes), []
        return notes


@dataclass(slots=True)
class Outcome:
    """Features of a batch for one set, and the clips that have none."""

    features: list[ClipFeatures] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


@dataclass(slots=True)
class Inputs:
    """The inputs of one model for a batch, and the clips that could not be decoded or prepared."""

    prepared: list[tuple[ClipRow, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def prepare_batch(
    batch: Sequence[ClipRow],
    missing: Mapping[Kind, frozenset[str]],
    frozen: FrozenModels,
    decoding: ClipDecoding,
) -> dict[Kind, Inputs]:
    """Decode the clips of a batch that miss features, each frame once."""
    inputs = {kind: Inputs() for kind in frozen.by_kind}
    for clip in batch:  # clip by clip: a clip's frames are near each other, which spares seeks
        models = [model for kind, model in frozen.by_kind.items() if clip.clip_id in missing.get(kind, ())]
        if len(models) > 1:
            with suppress(DecodeError, *MODEL_ERRORS):  # raised again below, for the model it belongs to
                decoding.load(clip, models)
        for model in models:
            own = inputs[model.kind]
            with _recorded(clip, model.kind, own.failures):
                own.prepared.append((clip, decoding.prepared(clip, model)))
    return inputs


def run_batch(inputs: Mapping[Kind, Inputs], frozen: FrozenModels, rows: RowLimit) -> dict[Kind, Outcome]:
    """Run the models over prepared clips. The inputs of one model are freed before the next one runs."""
    outcomes: dict[Kind, Outcome] = {}
    for kind, own in inputs.items():
        outcomes[kind] = Outcome(failures=list(own.failures))
        _forward(own.prepared, frozen.by_kind[kind], outcomes[kind], rows)
        own.prepared.clear()
    return outcomes


def with_video(failure: Failure, clip: ClipRow) -> Failure:
    """A failure that the cache reports by clip only, with the clip's video."""
    return replace(failure, video=clip.video, video_digest=clip.video_digest)


@contextmanager
def _recorded(clip: ClipRow, kind: Kind, failures: list[Failure]) -> Iterator[None]:
    """Record a clip that cannot be decoded or prepared as a failure of one set."""
    try:
        yield
    except DecodeError as error:
        failures.append(_failure(clip, "decode", str(error)))
    except MODEL_ERRORS as error:
        failures.append(_failure(clip, kind, _in_one_line(error)))


def _forward(prepared: Prepared, model: FrozenModel, outcome: Outcome, rows: RowLimit) -> None:
    """Run a model over a batch. Where that fails, run each clip alone, so that one clip costs only itself.

    Where memory runs out, later forwards have half the rows, down to one.
    """
    if not prepared:
        return
    try:
        outcome.features.extend(model.run(prepared, batch_size=rows.by_kind[model.kind]))
        return
    except (*MODEL_ERRORS, MemoryError) as error:
        out_of_memory, reason = is_out_of_memory(error), _in_one_line(error)
    # Outside the handler: its traceback would hold the tensors of the forward that failed.
    if out_of_memory and rows.halve(model.kind):
        _forward(prepared, model, outcome, rows)
    elif len(prepared) == 1:
        outcome.failures.append(_failure(prepared[0][0], model.kind, reason + REMEDY * out_of_memory))
    else:
        for item in prepared:
            _forward([item], model, outcome, rows)


def is_out_of_memory(error: BaseException) -> bool:
    """True if a device or the host had no memory left, by the messages of torch and Python."""
    message = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in message for words in ALLOCATOR_WORDS)
    )


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _failure(clip: ClipRow, stage: FailureStage, reason: str) -> Failure:
    return Failure(clip.video, stage, reason, clip_id=clip.clip_id, video_digest=clip.video_digest)
