"""The client of a vLLM server where there is no vLLM: what is sent, and servers and folders that fail us."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.models.weights import find_model
from thinkjepa.stages.extract.settings import ModelSettings, VllmSettings
from thinkjepa.stages.extract.thinker.vllm import server as vllm_server
from thinkjepa.stages.extract.thinker.vllm.engine import Limits, Request
from thinkjepa.stages.extract.thinker.vllm.server import DESCRIPTION, ServedThinker, VllmServer
from thinkjepa.stages.extract.thinker.vllm.serving import as_flags
from thinkjepa.stages.extract.thinker.vllm.thinker import VllmThinker
from thinkjepa.stages.settings import SettingsError

PROMPT, GENERATED = [5, 6, 7], [8, 9]
SERVED = ServedThinker("digest", (0, 2), "float32", "", "video", {"vllm": "0.32.0", "torch": "2.13.0"})
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
METADATA = {"fps": 1000.0, "frames_indices": [10, 510], "total_num_frames": 1000, "duration": 1.0}

Answer = Callable[[dict[str, Any], Path], tuple[int, dict[str, Any]]]


class Server:
    """Speaks as vLLM's server does; `answer` makes the status and the body of each answer."""

    def __init__(self, states: Path) -> None:
        self.states = states
        self.asked: list[dict[str, Any]] = []
        self.logins: list[str] = []
        self.answer: Answer = with_states
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(body)
                outer.logins += [self.headers["Authorization"]] if "Authorization" in self.headers else []
                self._send(*outer.answer(body, outer.states))

            def _send(self, status: int, body: dict[str, Any]) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    states = tmp_path / "states"
    states.mkdir()
    server = Server(states)
    thread = threading.Thread(target=server.http.serve_forever, daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "RETRY_WAIT_S", 0.01)
    monkeypatch.setattr(vllm_server, "APPEAR_TIMEOUT_S", 0.3)


def client(server: Server, *, timeout_s: float = 20, retries: int = 0) -> VllmServer:
    limits = Limits(max_new_tokens=2, stop_ids=(9,), timeout_s=timeout_s, retries=retries)
    return VllmServer(server.url, server.states, limits)


def request(rows: int = 1, *, images: bool = False) -> Request:
    content = [{"type": "video"}, {"type": "text", "text": "p"}]
    if images:
        content = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "image"}]
    return Request(
        prompts=[""] * rows,
        contents=[content] * rows,
        frames=[FRAMES] * rows,
        videos=[None if images else METADATA] * rows,
        processor={},
    )


def answer(path: Path) -> tuple[int, dict[str, Any]]:
    return 200, {
        "choices": [{"token_ids": GENERATED}],
        "prompt_token_ids": PROMPT,
        "kv_transfer_params": {"hidden_states_path": f"/on/the/server/{path.name}"},
    }


def with_states(body: dict[str, Any], states: Path) -> tuple[int, dict[str, Any]]:
    path = states / f"chatcmpl-{body['request_id']}-0.safetensors"
    value = float(len(body["messages"][0]["content"]))
    save_file({"hidden_states": torch.full((4, 2, 3), value), "token_ids": torch.tensor([*PROMPT, 8])}, path)
    Path(f"{path}.lock").touch()
    return answer(path)


def test_rows_come_back_in_order_from_lossless_frames_and_nothing_stays(server: Server) -> None:
    asking = client(server)
    asking.start()
    replies = asking.generate(request(3))
    assert [item.token_ids for item in replies] == [(5, 6, 7, 8)] * 3
    assert {item.prompt_token_count for item in replies} == {3}
    assert {item.generated_ids for item in replies} == {(8, 9)}
    assert list(server.states.iterdir()) == []
    body = server.asked[0]
    assert body["media_io_kwargs"] == {"video": {"num_frames": -1, **METADATA}}
    assert (body["max_tokens"], body["stop_token_ids"], body["temperature"]) == (2, [9], 0.0)
    url = body["messages"][0]["content"][0]["video_url"]["url"]
    pictures = url.removeprefix("data:video/jpeg;base64,").split(",")
    assert_same_frames(pictures)


def test_images_go_in_their_places(server: Server) -> None:
    client(server).generate(request(images=True))
    body = server.asked[0]
    assert "media_io_kwargs" not in body
    first, *images = body["messages"][0]["content"]
    assert first == {"type": "text", "text": "a"}
    assert_same_frames([item["image_url"]["url"].split(",")[1] for item in images])


def assert_same_frames(pictures: list[str]) -> None:
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))) for picture in pictures]
    assert np.array_equal(np.stack(shown), FRAMES)


def test_a_server_that_fails_once_is_asked_again_and_its_states_are_removed(server: Server) -> None:
    failures = iter([True])

    def fail_once(body: dict[str, Any], states: Path) -> tuple[int, dict[str, Any]]:
        if next(failures, False):
            with_states(body, states)
            return 500, {"error": "engine dead"}
        return with_states(body, states)

    server.answer = fail_once
    assert len(client(server, retries=1).generate(request())) == 1
    assert list(server.states.iterdir()) == []


@pytest.mark.parametrize(
    ("made", "kind", "named"),
    [
        (
            lambda body, states: (500, {"error": "engine dead"}),
            StageError,
            r"500.*engine dead.*after 1 tries",
        ),
        (lambda body, states: (400, {"error": "too long"}), RuntimeError, r"vllm: .*too long"),
        (
            lambda body, states: (200, {"choices": [{"token_ids": []}]}),
            StageError,
            r"no states.*serve-thinker",
        ),
        (lambda body, states: answer(states / "elsewhere.safetensors"), StageError, r"another folder"),
    ],
    ids=["broken", "refusing", "no states", "elsewhere"],
)
def test_a_server_that_fails_is_one_clear_line(
    server: Server, made: Answer, kind: type[Exception], named: str
) -> None:
    server.answer = made
    with pytest.raises(kind, match=named):
        client(server).generate(request())


def test_states_that_are_cut_short_or_were_never_written_are_not_taken(server: Server) -> None:
    def cut(body: dict[str, Any], states: Path) -> tuple[int, dict[str, Any]]:
        status, found = with_states(body, states)
        path = next(states.glob("*.safetensors"))
        path.write_bytes(path.read_bytes()[:-8])
        return status, found

    def unwritten(body: dict[str, Any], states: Path) -> tuple[int, dict[str, Any]]:
        status, found = with_states(body, states)
        next(states.glob("*.safetensors")).unlink()
        return status, found

    for made in (cut, unwritten):
        server.answer = made
        with pytest.raises(StageError, match=r"cannot pass through .*--states"):
            client(server).generate(request())
        assert list(server.states.iterdir()) == []


def test_a_path_that_leads_outside_is_looked_up_inside(server: Server, tmp_path: Path) -> None:
    outside = tmp_path / "chatcmpl-x.safetensors"
    outside.write_bytes(b"mine")
    Path(f"{outside}.lock").touch()
    server.answer = lambda body, states: (
        200,
        {**answer(outside)[1], "kv_transfer_params": {"hidden_states_path": f"../{outside.name}"}},
    )
    with pytest.raises(StageError, match="another folder"):
        client(server).generate(request())
    assert outside.read_bytes() == b"mine"


def test_a_server_that_never_answers_or_is_not_there_ends_in_time(server: Server) -> None:
    server.answer = lambda body, states: (time.sleep(3), (200, {}))[1]  # type: ignore[func-returns-value]
    began = time.monotonic()
    with pytest.raises(StageError, match=r"no answer .* for 0.5 s \(--vllm-timeout\)"):
        client(server, timeout_s=0.5).generate(request())
    assert time.monotonic() - began < 3
    server.http.shutdown()
    server.http.server_close()
    asking = client(server)
    with pytest.raises(StageError, match="serve-thinker"):
        asking.start()
    with pytest.raises(StageError, match="serve-thinker"):
        asking.generate(request())


def test_states_that_killed_runs_left_are_cleared_and_those_of_others_stay(server: Server) -> None:
    old, new, other = (server.states / name for name in ("chatcmpl-a", "chatcmpl-b", DESCRIPTION))
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    client(server).start()
    assert sorted(server.states.iterdir()) == sorted([new, other])


def test_a_description_is_read_back_and_another_thinker_is_refused(tmp_path: Path) -> None:
    SERVED.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [DESCRIPTION]
    served = ServedThinker.read(tmp_path)
    assert served == SERVED
    served.check(replace(SERVED, versions={}))
    others: dict[str, Any] = {
        "weights": "other",
        "layers": (0, 3),
        "dtype": "bfloat16",
        "quantization": "fp8",
        "frames_as": "images",
    }
    for name, value in others.items():
        with pytest.raises(StageError, match=name):
            served.check(replace(SERVED, **{name: value}))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 2}', '{"format": 1, "layers": 3}'])
def test_a_folder_without_a_description_is_refused(tmp_path: Path, content: str) -> None:
    if content:
        (tmp_path / DESCRIPTION).write_text(content)
    with pytest.raises(StageError, match=r"describes no server.*serve-thinker --states"):
        ServedThinker.read(tmp_path)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"vllm_url": "http://a:1", "vllm_states": "d"}, "needs --backend vllm"),
        ({"backend": "vllm", "vllm_url": "a:1", "vllm_states": "d"}, "http://HOST:PORT"),
        ({"backend": "vllm", "vllm_url": "http://a:1"}, "--vllm-states together"),
        ({"backend": "vllm", "vllm_states": "d"}, "--vllm-states together"),
    ],
)
def test_settings_of_a_server_go_together(given: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        VllmSettings(**given)


def test_options_become_flags() -> None:
    options = {
        "max_model_len": 7,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "limit": {"video": 1},
    }
    assert as_flags(options) == [
        "--max-model-len",
        "7",
        "--enforce-eager",
        "--no-enable-prefix-caching",
        "--limit",
        '{"video": 1}',
    ]


def test_a_password_goes_to_the_server_and_nowhere_else(
    server: Server, tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.url.replace("://", "://me:secret@")
    limits = Limits(max_new_tokens=2, stop_ids=(9,), timeout_s=20, retries=0)
    asking = VllmServer(url, server.states, limits)
    asking.start()
    assert len(asking.generate(request())) == 1
    assert server.logins == ["Basic " + base64.b64encode(b"me:secret").decode()]
    server.answer = lambda body, states: (500, {"error": "out of memory"})
    with pytest.raises(StageError, match=r"http://\*\*\*@127") as raised:
        asking.generate(request())
    server.http.shutdown()
    server.http.server_close()
    messages = [str(raised.value)]
    for attempt in (asking.start, lambda: asking.generate(request())):
        with pytest.raises(StageError) as raised:
            attempt()
        messages.append(str(raised.value))
    assert not [text for text in messages if "secret" in text]
    monkeypatch.setattr(VllmThinker, "_find_versions", lambda self: {"vllm": "0.33"})
    thinker = VllmThinker(
        find_model(str(tiny_models / "thinker"), revision="main", role="thinker"),
        ModelSettings(),
        VllmSettings(backend="vllm", vllm_url=url, vllm_states=str(server.states)),
        dtype="float32",
        device=torch.device("cpu"),
        batch_size=1,
    )
    assert thinker.source["server"] == server.url.replace("://", "://***@"), "as the cache has it"
