"""vLLM as a server on another machine: asked over HTTP, its states read from a folder that both see.

The server is started by `thinkjepa-cache serve-thinker`, which leaves a description of it in that folder: a
server does not tell which layers it hands out, and states of other layers look the same.
"""

from __future__ import annotations

import base64
import io
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import requests
from PIL import Image

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.thinker.vllm.engine import (
    EngineLostError,
    Question,
    Reply,
    first_line,
    no_passage,
    read_states,
)
from thinkjepa.stages.extract.thinker.vllm.worker import is_written

DESCRIPTION = "thinkjepa-thinker.json"

FORMAT = 1

SERVED_NAME = "thinkjepa-thinker"

OF_REQUESTS = "chatcmpl-*"
"""Files that the connector writes into the folder, one of states and one of a lock for each request."""

CONNECT_TIMEOUT_S = 10.0

APPEAR_TIMEOUT_S = 60.0
"""For a file that the server has begun to show up here: shared folders lag behind."""

POLL_S = 0.005

RETRY_WAIT_S = 5.0

STALE_S = 3600.0
"""States that nobody has fetched for so long belong to a run that was killed."""


@dataclass(frozen=True, slots=True)
class ServedThinker:
    """What a server computes: all that changes features. `frames_as` is video or images."""

    weights: str
    layers: tuple[int, ...]
    dtype: str
    quantization: str
    frames_as: str
    versions: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Into the shared folder, whole or not at all. Raises OSError."""
        part = folder / f".{DESCRIPTION}.{uuid.uuid4().hex}.tmp"
        part.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n", encoding="utf-8")
        part.replace(folder / DESCRIPTION)

    @classmethod
    def read(cls, folder: Path) -> ServedThinker:
        """Raises StageError where the folder does not describe a server that this version understands."""
        path = folder / DESCRIPTION
        try:
            found = json.loads(path.read_bytes())
            if found.pop("format") != FORMAT:
                raise ValueError("it has another format")
            return cls(**{**found, "layers": tuple(found["layers"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StageError(
                f"--vllm-states {str(folder)!r} describes no server ({first_line(str(error))}): name the "
                "folder that `thinkjepa-cache serve-thinker --states` was given, as it is seen from here"
            ) from error

    def check(self, wanted: ServedThinker) -> None:
        """Raise StageError where the server computes other features than are wanted."""
        for field in fields(self):
            served, asked = getattr(self, field.name), getattr(wanted, field.name)
            if field.name != "versions" and served != asked:
                raise StageError(
                    f"the server of --vllm-url has {field.name} {_shown(served)}, asked for is "
                    f"{_shown(asked)}: give the same, or start it anew with `thinkjepa-cache serve-thinker`"
                )


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """Where a server is, and how it is asked."""

    url: str
    states: Path
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    timeout_s: float
    retries: int


class VllmServer:
    """A server that somebody else runs. Rows of a batch are asked at once; it schedules them."""

    def __init__(self, spec: ServerSpec) -> None:
        self.spec = spec
        self._requests = f"thinkjepa-{uuid.uuid4().hex[:12]}"
        """Begins the names of all our requests, and of their files."""

    def start(self) -> None:
        """Reach the server, and clear what killed runs left. Raises StageError where it does not answer."""
        try:
            requests.get(f"{self.spec.url}/health", timeout=CONNECT_TIMEOUT_S).raise_for_status()
        except requests.RequestException as error:
            raise _unreachable(self.spec.url, error) from error
        _remove(self.spec.states, OF_REQUESTS, older_than_s=STALE_S)

    def ask(self, question: Question) -> list[Reply]:
        """One reply per row; a server that is away is asked again. Raises as `Engine.ask`."""
        tries = self.spec.retries + 1
        for left in reversed(range(tries)):
            try:
                return self._ask_once(question)
            except EngineLostError as error:
                if not left:
                    raise StageError(f"{error}; given up after {tries} tries (--vllm-restarts)") from error
                time.sleep(RETRY_WAIT_S)
        raise AssertionError

    def stop(self) -> None:
        """Remove the states that nobody will fetch."""
        _remove(self.spec.states, f"chatcmpl-{self._requests}-*")

    def _ask_once(self, question: Question) -> list[Reply]:
        bodies = [
            self._body(content, frames, metadata)
            for content, frames, metadata in zip(
                question.contents, question.frames, question.videos, strict=True
            )
        ]
        try:
            with ThreadPoolExecutor(len(bodies), thread_name_prefix="vllm-url") as pool:
                return list(pool.map(self._reply, bodies))
        except BaseException:
            self.stop()
            raise

    def _body(
        self,
        content: Sequence[Mapping[str, str]],
        frames: npt.NDArray[np.uint8],
        metadata: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """A chat request with lossless frames. A list of pictures is a video there, of times of its own."""
        pictures = [_png(frame) for frame in frames]
        body = {
            "model": SERVED_NAME,
            "request_id": f"{self._requests}-{uuid.uuid4().hex}",
            "messages": [{"role": "user", "content": _parts(content, pictures)}],
            "temperature": 0.0,
            "max_tokens": self.spec.max_new_tokens,
            "stop_token_ids": list(self.spec.stop_ids),
            "return_token_ids": True,
            "kv_transfer_params": {"include_output_tokens": True},
        }
        if metadata is not None:
            body["media_io_kwargs"] = {"video": {"num_frames": -1, **metadata}}
        return body

    def _reply(self, body: Mapping[str, Any]) -> Reply:
        answer = self._post(body)
        try:
            choice = answer["choices"][0]
            prompt, generated = tuple(answer["prompt_token_ids"]), tuple(choice["token_ids"])
            written = PurePosixPath(answer["kv_transfer_params"]["hidden_states_path"]).name
        except (LookupError, TypeError) as error:
            raise StageError(
                f"the server at {self.spec.url} hands out no states: start it with "
                "`thinkjepa-cache serve-thinker`"
            ) from error
        states, ids = self._fetch(written)
        return Reply(states, ids, len(prompt), generated)

    def _post(self, body: Mapping[str, Any]) -> Any:
        url, limit = self.spec.url, self.spec.timeout_s
        try:
            response = requests.post(
                f"{url}/v1/chat/completions", json=body, timeout=(CONNECT_TIMEOUT_S, limit)
            )
            if response.status_code < 400:
                return response.json()
        except requests.ReadTimeout as error:
            raise EngineLostError(f"no answer from {url} for {limit:g} s (--vllm-timeout)") from error
        except requests.RequestException as error:
            raise _unreachable(url, error) from error
        said = first_line(response.text)
        if response.status_code >= 500:
            raise EngineLostError(f"the server at {url} failed ({response.status_code}): {said}")
        raise RuntimeError(f"vllm: {said}")

    def _fetch(self, name: str) -> Any:
        """The states of a request, once the server has written them."""
        path = self.spec.states / name
        lock = path.with_name(f"{name}.lock")
        began = time.monotonic()
        while not is_written(str(path)):
            waited = time.monotonic() - began
            if waited > self.spec.timeout_s:
                raise EngineLostError(f"no states from {self.spec.url} for {waited:.0f} s (--vllm-timeout)")
            if waited > APPEAR_TIMEOUT_S and not lock.exists():
                raise StageError(
                    f"--vllm-states {str(self.spec.states)!r} has no {name!r}: "
                    "the server writes to another folder"
                )
            time.sleep(POLL_S)
        try:
            return read_states(path)
        except OSError as error:
            raise no_passage(
                self.spec.states, error, remedy="start the server with another --states"
            ) from error
        finally:
            lock.unlink(missing_ok=True)


def _parts(content: Sequence[Mapping[str, str]], pictures: Sequence[str]) -> list[dict[str, Any]]:
    """Content of a chat request: each image in its place, or all of them in that of the video."""
    left = iter(pictures)
    parts: list[dict[str, Any]] = []
    for part in content:
        if part["type"] == "image":
            parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{next(left)}"}})
        elif part["type"] == "video":
            joined = ",".join(left)
            parts.append({"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{joined}"}})
        else:
            parts.append(dict(part))
    return parts


def _png(frame: npt.NDArray[np.uint8]) -> str:
    packed = io.BytesIO()
    Image.fromarray(frame).save(packed, "PNG", compress_level=1)
    return base64.b64encode(packed.getvalue()).decode()


def _remove(folder: Path, pattern: str, *, older_than_s: float = 0.0) -> None:
    for path in folder.glob(pattern):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime >= older_than_s:
                path.unlink()


def _unreachable(url: str, error: Exception) -> EngineLostError:
    return EngineLostError(
        f"no server answers at --vllm-url {url} ({type(error).__name__}): start one with "
        "`thinkjepa-cache serve-thinker`"
    )


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else repr(value)
