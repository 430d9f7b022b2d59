"""What vLLM is asked and what it answers, however it is reached: as a process of ours, or as a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file
from torch import Tensor

from thinkjepa.stages.errors import StageError


class EngineLostError(StageError):
    """The engine died or did not answer: it can be asked again."""


@dataclass(frozen=True, slots=True)
class Question:
    """One batch: for each row a prompt with places for its frames, the frames, and their metadata.

    A prompt is the whole conversation; `contents` are the parts that the chat template made it of. Frames are
    `(frame, height, width, 3)` uint8. Without metadata they are images, each in a place of its own, else one
    video. `processor` are arguments of the model's processor.
    """

    prompts: Sequence[str]
    contents: Sequence[Sequence[Mapping[str, str]]]
    frames: Sequence[npt.NDArray[np.uint8]]
    videos: Sequence[Mapping[str, Any] | None]
    processor: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """One row as the engine gave it: states `(token, layer, dim)`, their token ids, the generated ids."""

    hidden_SLD: Tensor
    token_ids: tuple[int, ...]
    prompt_token_count: int
    generated_ids: tuple[int, ...]


class Engine(Protocol):
    """One way to reach vLLM."""

    def start(self) -> None:
        """Make it ready. Raises StageError where that cannot be done."""
        ...

    def ask(self, question: Question) -> list[Reply]:
        """One reply per row.

        Raises StageError when it is lost for good or states cannot pass, RuntimeError with vLLM's reason
        where it refuses the question.
        """
        ...

    def stop(self) -> None:
        """Let go of it and remove what it left."""
        ...


def read_states(path: Path) -> tuple[Tensor, tuple[int, ...]]:
    """States `(token, layer, dim)` and token ids of a file of vLLM's connector, which is removed.

    Raises OSError for a file that is missing or cut short.
    """
    try:
        held = load_file(path)
        path.unlink()
    except Exception as error:  # safetensors has an exception of its own for a truncated file
        raise OSError(str(error)) from error
    return held["hidden_states"], tuple(held["token_ids"].tolist())


def no_passage(folder: Path, error: Exception | str, *, remedy: str) -> StageError:
    """Frames or states did not get through a folder."""
    return StageError(
        f"frames and states cannot pass through {str(folder)!r} ({first_line(str(error))}): "
        f"free space there, or {remedy}"
    )


def first_line(text: str) -> str:
    """Some words of another program's message, on one line."""
    return " ".join(text.split())[:300]
