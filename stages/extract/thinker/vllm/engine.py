"""The contract of vLLM transports: one batch of requests in, hidden states in files out.

A transport is a process of ours (`process`) or a server (`server`). Both hand states over in safetensors
files, and both are asked again, a limited number of times, when vLLM is lost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file
from torch import Tensor

from thinkjepa.stages.errors import StageError


class EngineLostError(StageError):
    """vLLM died or did not respond. The same request can be sent again."""


@dataclass(frozen=True, slots=True)
class Request:
    """One batch: for each row a prompt with placeholders for its frames, the frames, and their metadata.

    A prompt is the whole conversation, `contents` the parts that the chat template made it of. Frames are
    `(frame, height, width, 3)` uint8. Rows with metadata are one video, the others one image per frame.
    `processor` holds arguments of the model's processor.
    """

    prompts: Sequence[str]
    contents: Sequence[Sequence[Mapping[str, str]]]
    frames: Sequence[npt.NDArray[np.uint8]]
    videos: Sequence[Mapping[str, Any] | None]
    processor: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Response:
    """One row as vLLM gives it: states `(token, layer, dim)`, their token ids, the generated ids."""

    hidden_SLD: Tensor
    token_ids: tuple[int, ...]
    prompt_token_count: int
    generated_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a generation by vLLM: new tokens, seconds, and retries."""

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    timeout_s: float
    retries: int


class Engine(ABC):
    """One transport to vLLM."""

    limits: Limits

    @abstractmethod
    def start(self) -> None:
        """Make vLLM ready. Raises StageError where that cannot be done."""

    def generate(self, request: Request) -> list[Response]:
        """One response per row, after as many attempts as `limits` allow.

        Raises StageError when vLLM is lost for good or states cannot pass, RuntimeError with vLLM's reason
        where it refuses the request.
        """
        for attempt in count(1):
            try:
                return self._attempt(request)
            except EngineLostError as error:
                if not self._may_retry(attempt):
                    tries = self.limits.retries + 1
                    raise StageError(f"{error}; failed after {tries} tries (--vllm-restarts)") from error
        raise AssertionError

    @abstractmethod
    def stop(self) -> None:
        """Release vLLM and remove the files that it left."""

    @abstractmethod
    def _attempt(self, request: Request) -> list[Response]:
        """As `generate`, once. Raises EngineLostError where another attempt may help."""

    @abstractmethod
    def _may_retry(self, attempt: int) -> bool:
        """Prepare for another attempt after that many. False where none is left."""


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


def blocked_folder(folder: Path, error: Exception | str, *, remedy: str) -> StageError:
    """The error for frames or states that did not get through a folder."""
    return StageError(
        f"frames and states cannot pass through {str(folder)!r} ({first_line(str(error))}): "
        f"free space there, or {remedy}"
    )


def first_line(text: str) -> str:
    """The first 300 characters of another program's message, on one line."""
    return " ".join(text.split())[:300]
