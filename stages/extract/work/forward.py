"""One batch of clips: decoded and preprocessed, then through the models; a clip that fails is an outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from thinkjepa.cache import ClipFeatures, ClipRow, Failure, FailureStage, Kind
from thinkjepa.stages.data.decoding.client import DecodeError
from thinkjepa.stages.extract.models.pair import FrozenModels
from thinkjepa.stages.extract.thinker.contract import Prompt, thought_features
from thinkjepa.stages.extract.work.frames import ClipDecoding, encoder_view, see, thinker_view, watch

Ready = TypeVar("Ready")

MODEL_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, KeyError)
"""What processors and models raise for an input they cannot take; anything else is a defect."""

ALLOCATOR_WORDS = ("defaultcpuallocator: can't allocate", "not enough memory", "out of memory")
"""What torch's allocators say, where they raise no error of a kind of its own."""

REMEDY = "; even one clip at a time does not fit: use smaller models, fewer frames, or a lower --dtype"


@dataclass(slots=True)
class RowLimit:
    """Clips a forward takes at most: all that were asked for, until memory runs out."""

    of: dict[Kind, int]
    halved: list[str] = field(default_factory=list)
    """What the user should know of it."""

    @classmethod
    def of_batch(cls, batch_size: int) -> RowLimit:
        return cls({"thinker": batch_size, "encoder": batch_size})

    def halve(self, kind: Kind) -> bool:
        """Half as many rows from now on. False where there is one already."""
        before = self.of[kind]
        if before == 1:
            return False
        self.of[kind] = before // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.halved.append(
            f"out of memory with {before} clips in a forward of the {kind}: going on with {before // 2}; "
            f"--batch-size {before // 2} spares the attempt"
        )
        return True

    def told(self) -> tuple[str, ...]:
        """What is new for the user, once."""
        notes, self.halved = tuple(self.halved), []
        return notes


@dataclass(slots=True)
class Outcome:
    """Features of a batch for one set, and the clips that have none."""

    features: list[ClipFeatures] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


@dataclass(slots=True)
class Inputs:
    """What the models take of a batch, decoded and preprocessed, and the clips that could not be."""

    prompts: list[tuple[ClipRow, Prompt]] = field(default_factory=list)
    windows: list[tuple[ClipRow, list[Tensor]]] = field(default_factory=list)
    failures: dict[Kind, list[Failure]] = field(default_factory=lambda: {"thinker": [], "encoder": []})


def prepare_batch(
    batch: Sequence[ClipRow],
    missing: Mapping[Kind, frozenset[str]],
    frozen: FrozenModels,
    decoding: ClipDecoding,
) -> Inputs:
    """Decode the clips of a batch that miss features, each frame once."""
    inputs = Inputs()
    for clip in batch:  # clip by clip: a clip's frames lie near each other, which spares seeks
        thinker = clip.clip_id in missing.get("thinker", ())
        encoder = clip.clip_id in missing.get("encoder", ())
        if thinker and encoder:
            with suppress(DecodeError, *MODEL_ERRORS):  # told below, of the model that it belongs to
                views = (thinker_view(clip, frozen.thinker), encoder_view(clip, frozen.encoder))
                decoding.look(clip, views)
        if thinker:
            with _recorded(clip, "thinker", inputs.failures):
                scene = see(clip, frozen.thinker, decoding)
                inputs.prompts.append((clip, frozen.thinker.prepare(scene)))
        if encoder:
            with _recorded(clip, "encoder", inputs.failures):
                inputs.windows.append((clip, watch(clip, frozen.encoder, decoding)))
    return inputs


def run_batch(inputs: Inputs, frozen: FrozenModels, rows: RowLimit) -> dict[Kind, Outcome]:
    """Run the models over prepared clips. What one model was given is gone when the next one begins."""
    outcomes: dict[Kind, Outcome] = {
        kind: Outcome(failures=list(failed)) for kind, failed in inputs.failures.items()
    }
    think, encode = partial(_think, frozen=frozen), partial(_encode, frozen=frozen)
    _forward(inputs.prompts, think, "thinker", outcomes["thinker"], rows)
    inputs.prompts.clear()
    _forward(inputs.windows, encode, "encoder", outcomes["encoder"], rows)
    return outcomes


def with_video(failure: Failure, clip: ClipRow) -> Failure:
    """A failure of the cache's, which knows clips only, with the clip's video."""
    return replace(failure, video=clip.video, video_digest=clip.video_digest)


@contextmanager
def _recorded(clip: ClipRow, kind: Kind, failures: Mapping[Kind, list[Failure]]) -> Iterator[None]:
    """Record a clip that cannot be decoded or preprocessed as a failure of one set."""
    try:
        yield
    except DecodeError as error:
        failures[kind].append(_failure(clip, "decode", str(error)))
    except MODEL_ERRORS as error:
        failures[kind].append(_failure(clip, kind, _in_one_line(error)))


def _think(ready: Sequence[tuple[ClipRow, Prompt]], rows: int, *, frozen: FrozenModels) -> list[ClipFeatures]:
    thoughts = frozen.thinker.answer([prompt for _, prompt in ready], batch_size=rows)
    return [
        thought_features(clip.clip_id, thought) for (clip, _), thought in zip(ready, thoughts, strict=True)
    ]


def _encode(
    ready: Sequence[tuple[ClipRow, list[Tensor]]], rows: int, *, frozen: FrozenModels
) -> list[ClipFeatures]:
    by_window = zip(*(windows for _, windows in ready), strict=True)
    observed, *future = [frozen.encoder.encode(windows, batch_size=rows) for windows in by_window]
    stacked = torch.stack(future, dim=1)
    return [
        ClipFeatures(clip.clip_id, {"observed": observed[place], "future": stacked[place]})
        for place, (clip, _) in enumerate(ready)
    ]


def _forward(
    ready: Sequence[tuple[ClipRow, Ready]],
    model: Callable[[Sequence[tuple[ClipRow, Ready]], int], list[ClipFeatures]],
    kind: Kind,
    outcome: Outcome,
    rows: RowLimit,
) -> None:
    """Run a model over a batch; where that fails, over each clip alone: one clip costs only itself.

    Where memory runs out, forwards have half the rows from then on, down to one.
    """
    if not ready:
        return
    try:
        outcome.features.extend(model(ready, rows.of[kind]))
        return
    except (*MODEL_ERRORS, MemoryError) as error:
        out_of_memory, reason = is_out_of_memory(error), _in_one_line(error)
    # Outside the handler: its traceback would hold the tensors of the forward that failed.
    if out_of_memory and rows.halve(kind):
        _forward(ready, model, kind, outcome, rows)
    elif len(ready) == 1:
        outcome.failures.append(_failure(ready[0][0], kind, reason + REMEDY * out_of_memory))
    else:
        for item in ready:
            _forward([item], model, kind, outcome, rows)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left, by what torch and Python say then."""
    said = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in said for words in ALLOCATOR_WORDS)
    )


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _failure(clip: ClipRow, stage: FailureStage, reason: str) -> Failure:
    return Failure(clip.video, stage, reason, clip_id=clip.clip_id, video_digest=clip.video_digest)
