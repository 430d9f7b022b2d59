"""Models that cannot be had are reported in one sentence, with a real server on loopback and with none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.models.weights import find_model
from thinkjepa.stages.extract.settings import ModelSettings

ANSWERS = {
    "no/such": (404, "RepoNotFound"),
    "private/model": (401, ""),
    "gated/model": (403, "GatedRepo"),
    "has/no-revision": (404, "RevisionNotFound"),
    "busy/model": (503, ""),
}

ASK = """
import json, sys
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.models.weights import find_model
said = {}
for name in sys.argv[1:]:
    try:
        find_model(name, revision="v7", role="encoder")
    except StageError as error:
        said[name] = str(error)
print(json.dumps(said))
"""


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does: a status, and a header that names the error."""

    def do_GET(self) -> None:
        name = "/".join(self.path.removeprefix("/api/models/").split("/")[:2])
        status, code = ANSWERS[name]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def asked(home: Path, endpoint: str, *names: str, offline: bool = False) -> dict[str, str]:
    """Messages of `find_model` for models, from a process that has this hub."""
    own = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": str(int(offline))}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *names],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, str] = json.loads(done.stdout)
    assert all("\n" not in text and len(text) < 400 for text in said.values())
    return said


def test_each_answer_of_a_hub_is_told_with_its_remedy(hub: str, tmp_path: Path) -> None:
    said = asked(tmp_path, hub, *ANSWERS)
    assert f"the hub ({hub}) shows no model of that name: check the name" in said["no/such"]
    assert "log in where it is private (hf auth login, or HF_TOKEN)" in said["private/model"]
    assert f"accept its conditions at {hub}/gated/model, then log in" in said["gated/model"]
    assert "the hub has it, but not at --encoder-revision 'v7'" in said["has/no-revision"]
    assert "answers with status 503: try again later" in said["busy/model"]


def test_no_network_and_offline_name_the_folder_that_lacks_the_model(tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:9"
    (away,) = asked(tmp_path, nobody, "a/model").values()
    assert f"the hub ({nobody}) cannot be reached" in away
    assert f"HF_HOME ({tmp_path}) does not hold it" in away
    assert "hf download a/model" in away
    (offline,) = asked(tmp_path, nobody, "a/model", offline=True).values()
    assert f"HF_HOME ({tmp_path}) does not hold it while HF_HUB_OFFLINE forbids to fetch it" in offline


def test_a_download_that_never_ended_is_told(tmp_path: Path, tiny_models: Path) -> None:
    """`estimate` leaves a snapshot without weights, which is all that there is without network."""
    stored = tmp_path / "hub" / "models--a--model"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "v7").write_text("0" * 40)
    shutil.copytree(tiny_models / "encoder", stored / "snapshots" / ("0" * 40))
    assert asked(tmp_path, "http://127.0.0.1:9", "a/model") == {}
    (stored / "snapshots" / ("0" * 40) / "model.safetensors").unlink()
    (said,) = asked(tmp_path, "http://127.0.0.1:9", "a/model").values()
    assert "no .safetensors weights" in said
    assert "never ended, run again with network" in said


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer"),
        ("model.safetensors", "1 of 1 weight files are missing, e.g. model.safetensors"),
    ],
)
def test_a_folder_that_lacks_a_file_names_it(
    tmp_path: Path, tiny_models: Path, change: str, lacks: str
) -> None:
    folder = shutil.copytree(tiny_models / "thinker", tmp_path / "thinker")
    if change == "model.safetensors":
        index = {"weight_map": {"a": "model.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "other.safetensors").write_bytes(b"")
    (folder / change).unlink()
    with pytest.raises(StageError, match=lacks) as raised:
        find_model(str(folder), revision="main", role="thinker")
    assert "copy the whole folder" in str(raised.value)


@pytest.mark.parametrize("lacking", ["processor_config.json", "chat_template.jinja"])
def test_a_processor_that_lacks_a_file_names_it(tmp_path: Path, tiny_models: Path, lacking: str) -> None:
    import torch

    from thinkjepa.stages.extract.thinker.hooks import HookedThinker

    folder = shutil.copytree(tiny_models / "thinker", tmp_path / "thinker")
    (folder / lacking).unlink()
    found = find_model(str(folder), revision="main", role="thinker")
    thinker = HookedThinker(found, ModelSettings(), dtype="float32", device=torch.device("cpu"))
    with pytest.raises(
        StageError, match=r"has no (preprocessor_config|chat template).*copy the whole folder"
    ):
        thinker.load_processor()


@pytest.mark.parametrize("role", ["thinker", "encoder"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", None])
def test_damaged_weights_are_found_with_the_model(
    tmp_path: Path, tiny_models: Path, role: str, content: bytes | None
) -> None:
    """None stands for a file that was cut in half."""
    copy = shutil.copytree(tiny_models / role, tmp_path / role)
    file = next(copy.glob("*.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(StageError, match=rf"{file.name} is damaged .*\); copy the whole folder$"):
        find_model(str(copy), revision="main", role=role)
