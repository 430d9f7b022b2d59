"""vLLM as a server on another machine: reached over HTTP, its states read from a shared folder.

`thinkjepa-cache serve-thinker` starts the server and leaves a description of it in that folder. The server
itself does not tell which layers it hands out, and states of other layers look the same.
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
from torch import Tensor

from thinkjepa.cache.text import without_passwords
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
from thinkjepa.stages.extract.thinker.vllm.worker import is_written

DESCRIPTION = "thinkjepa-thinker.json"

FORMAT = 1

SERVED_NAME = "thinkjepa-thinker"

REQUEST_FILES = "chatcmpl-*"
"""Files that the connector writes into the folder: states and a lock for each request."""

CONNECT_TIMEOUT_S = 10.0

APPEAR_TIMEOUT_S = 60.0
"""Until a file that the server has begun shows up here: shared folders lag."""

POLL_S = 0.005

RETRY_WAIT_S = 5.0

STALE_S = 3600.0
"""Age at which states that nobody has fetched belong to a run that was killed."""


@dataclass(frozen=True, slots=True)
class ServedThinker:
    """Everything about a server that changes features. `frames_as` is video or images."""

    weights: str
    layers: tuple[int, ...]
    dtype: str
    quantization: str
    frames_as: str
    versions: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Write the description into the shared folder, whole or not at all. Raises OSError."""
        part = folder / f".{DESCRIPTION}.{uuid.uuid4().hex}.tmp"
        part.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n", encoding="utf-8")
        part.replace(folder / DESCRIPTION)

    @classmethod
    def read(cls, folder: Path) -> ServedThinker:
        """The description in a folder. Raises StageError where this version does not understand it."""
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


class VllmServer(Engine):
    """A server that somebody else runs. All rows of a batch are sent at once, and it schedules them.

    `states` is the shared folder as it is seen from here.
    """

    def __init__(self, url: str, states: Path, limits: Limits) -> None:
        self.limits = limits
        self._url = url
        self._shown = without_passwords(url)
        self._states = states
        self._name = f"thinkjepa-{uuid.uuid4().hex[:12]}"
        """Prefix of the names of all our requests, and of their files."""

    def start(self) -> None:
        """Reach the server, and clear what killed runs left. Raises StageError where it does not answer."""
        try:
            requests.get(f"{self._url}/health", timeout=CONNECT_TIMEOUT_S).raise_for_status()
        except requests.RequestException as error:
            raise _unreachable(self._shown, error) from error
        _remove(self._states, REQUEST_FILES, older_than_s=STALE_S)

    def stop(self) -> None:
        """Remove the states that nobody will fetch."""
        _remove(self._states, f"chatcmpl-{self._name}-*")

    def _attempt(self, request: Request) -> list[Response]:
        rows = zip(request.contents, request.frames, request.videos, strict=True)
        bodies = [self._body(content, frames, metadata) for content, frames, metadata in rows]
        try:
            with ThreadPoolExecutor(len(bodies), thread_name_prefix="vllm-url") as pool:
                return list(pool.map(self._response, bodies))
        except BaseException:
            self.stop()
            raise

    def _may_retry(self, attempt: int) -> bool:
        if attempt > self.limits.retries:
            return False
        time.sleep(RETRY_WAIT_S)
        return True

    def _body(
        self,
        content: Sequence[Mapping[str, str]],
        frames: npt.NDArray[np.uint8],
        metadata: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """A chat request with lossless frames. The server takes a list of images for a video."""
        images = [_png(frame) for frame in frames]
        body = {
            "model": SERVED_NAME,
            "request_id": f"{self._name}-{uuid.uuid4().hex}",
            "messages": [{"role": "user", "content": _parts(content, images)}],
            "temperature": 0.0,
            "max_tokens": self.limits.max_new_tokens,
            "stop_token_ids": list(self.limits.stop_ids),
            "return_token_ids": True,
            "kv_transfer_params": {"include_output_tokens": True},
        }
        if metadata is not None:
            body["media_io_kwargs"] = {"video": {"num_frames": -1, **metadata}}
        return body

    def _response(self, body: Mapping[str, Any]) -> Response:
        found = self._post(body)
        try:
            generated = tuple(found["choices"][0]["token_ids"])
            num_prompt_tokens = len(found["prompt_token_ids"])
            written = PurePosixPath(found["kv_transfer_params"]["hidden_states_path"]).name
        except (LookupError, TypeError) as error:
            raise StageError(
                f"the server at {self._shown} hands out no states: start it with "
                "`thinkjepa-cache serve-thinker`"
            ) from error
        states, ids = self._fetch(written)
        return Response(states, ids, num_prompt_tokens, generated)

    def _post(self, body: Mapping[str, Any]) -> Any:
        url, limit = self._shown, self.limits.timeout_s
        try:
            response = requests.post(
                f"{self._url}/v1/chat/completions", json=body, timeout=(CONNECT_TIMEOUT_S, limit)
            )
            if response.status_code < 400:
                return response.json()
        except requests.ReadTimeout as error:
            raise EngineLostError(f"no answer from {url} for {limit:g} s (--vllm-timeout)") from error
        except requests.RequestException as error:
            raise _unreachable(url, error) from error
        reason = first_line(response.text)
        if response.status_code >= 500:
            raise EngineLostError(f"the server at {url} failed ({response.status_code}): {reason}")
        raise RuntimeError(f"vllm: {reason}")

    def _fetch(self, name: str) -> tuple[Tensor, tuple[int, ...]]:
        """The states and token ids of a request, once the server has written them."""
        path = self._states / name
        lock = path.with_name(f"{name}.lock")
        began = time.monotonic()
        while not is_written(str(path)):
            waited = time.monotonic() - began
            if waited > self.limits.timeout_s:
                raise EngineLostError(f"no states from {self._shown} for {waited:.0f} s (--vllm-timeout)")
            if waited > APPEAR_TIMEOUT_S and not lock.exists():
                raise StageError(
                    f"--vllm-states {str(self._states)!r} has no {name!r}: "
                    "the server writes to another folder"
                )
            time.sleep(POLL_S)
        try:
            return read_states(path)
        except OSError as error:
            raise blocked_folder(
                self._states, error, remedy="start the server with another --states"
            ) from error
        finally:
            lock.unlink(missing_ok=True)


def _parts(content: Sequence[Mapping[str, str]], images: Sequence[str]) -> list[dict[str, Any]]:
    """Content of a chat request: images replace their placeholders, all of them that of the video."""
    left = iter(images)
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
