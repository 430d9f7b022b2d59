"""`--vllm-url`: a real server of vLLM, asked over HTTP, against the cache of transformers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import thinker_families

from thinkjepa.cache import FeatureCache
from thinkjepa.stages.extract.settings import ModelSettings

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

KEEP = ("--keep", "pooled,slots,text,tokens")
COMMAND = str(Path(sys.executable).parent / "thinkjepa-cache")
START_TIMEOUT_S = 240.0
TOLERANCE = 1e-5
"""Of a layer's largest state, float32."""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)


@contextmanager
def served(*arguments: object) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The server's address and process."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [COMMAND, "serve-thinker", *map(str, arguments), "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}", process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail("the server did not start in time")


@pytest.mark.parametrize(("family", "frames_as"), [("qwen3-vl", "video"), ("qwen2.5-vl", "images")])
def test_a_server_makes_the_cache_of_transformers(
    tmp_path: Path, tiny_models: Path, family: str, frames_as: str
) -> None:
    thinker, layers = tiny_models / "thinker", "0,1,3,6"
    if family != "qwen3-vl":
        thinker, layers = thinker_families.write_family(family, tmp_path / "thinker"), "0,2,4"
    videos, cache_dir, states = (tmp_path / name for name in ("videos", "cache", "states"))
    made = subprocess.run(
        [str(Path(COMMAND).with_name("thinkjepa-sample")), "videos", str(videos)],
        capture_output=True,
        check=False,
    )
    assert made.returncode == 0
    of_thinker = (
        "--thinker",
        thinker,
        "--layers",
        layers,
        "--frames-as",
        frames_as,
        "--max-new-tokens",
        4,
        *KEEP,
    )
    extract = (
        *("extract", "--videos", videos, "--cache-dir", cache_dir, *of_thinker, "--json"),
        *("--encoder", tiny_models / "encoder", "--thinker-frames", 4, "--observed-frames", 4),
        *("--future-frames", 4, "--dense-fps", 10, "--batch-size", 4, "--device", "cpu"),
    )
    with served("--states", states, *of_thinker) as (url, process):
        by_server = (*extract, "--backend", "vllm", "--vllm-url", url, "--vllm-states", states)
        other = run(*by_server, "--layers", "0,1")
        assert (other.returncode, other.stdout) == (2, "")
        assert f"has layers {layers}, asked for is 0,1" in other.stderr
        done = run(*by_server)
        assert done.returncode == 0, done.stderr
        clips = json.loads(done.stdout)["extracted"]
        assert clips > 4
        assert [path.name for path in states.iterdir()] == ["thinkjepa-thinker.json"]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        gone = run(*by_server, "--prompt", "another", "--vllm-restarts", 0)
        assert (gone.returncode, gone.stdout) == (2, "")
        assert "start one with `thinkjepa-cache serve-thinker`" in gone.stderr

    first = ("--backend", "transformers", "--prompt", ModelSettings().prompt)  # not those of the last one
    plain = run(*extract, *first)
    assert plain.returncode == 0, plain.stderr
    sets = [
        item
        for item in FeatureCache.open(cache_dir).feature_sets.values()
        if item.kind == "thinker" and item.origin["prompt"] != "another"
    ]
    by_backend = {item.origin["backend"]: item.name for item in sets}
    compared = run("compare", cache_dir, by_backend["transformers"], by_backend["vllm"], "--json")
    difference = json.loads(compared.stdout)
    assert difference["clips"] == difference["clips_with_equal_tokens"] == clips
    assert set(difference["states"]) == {f"layer {layer}" for layer in layers.split(",")}
    for name, item in difference["states"].items():
        assert item["max_abs_difference"] <= TOLERANCE * item["max_abs_of_a"], name
