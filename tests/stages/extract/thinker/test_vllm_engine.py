"""The vLLM backend where there is no vLLM: settings, checks of replies, and processes that fail us."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.settings import PYTHON_VARIABLE, VllmSettings
from thinkjepa.stages.extract.thinker.vllm.engine import Limits, Request, Response
from thinkjepa.stages.extract.thinker.vllm.process import VllmProcess, vllm_versions
from thinkjepa.stages.extract.thinker.vllm.thinker import check_model_type, response_problem
from thinkjepa.stages.settings import SettingsError

PROMPT, GENERATED = (5, 6, 7), (8, 9)
REQUEST = Request(prompts=[], contents=[], frames=[], videos=[], processor={})


@pytest.fixture
def staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "staging"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def interpreter(folder: Path, script: str) -> Path:
    """A program in the place of the Python that has vLLM."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def process(python: Path, *, timeout_s: float = 30, restarts: int = 0) -> VllmProcess:
    limits = Limits(max_new_tokens=2, stop_ids=(), timeout_s=timeout_s, retries=restarts)
    return VllmProcess(python, options={}, layers=(0, 1), limits=limits)


def response() -> Response:
    return Response(torch.zeros(4, 2, 3), (*PROMPT, GENERATED[0]), len(PROMPT), GENERATED)


def problem(found: Response) -> str:
    return response_problem(found, PROMPT, layers=2, width=3, dtype="float32")


def test_a_response_to_our_prompt_has_no_problem() -> None:
    assert problem(response()) == ""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_SLD": torch.zeros(5, 2, 3)}, "(5, 2, 3)"),
        ({"hidden_SLD": torch.zeros(4, 3, 3)}, "(4, 3, 3)"),
        ({"hidden_SLD": torch.zeros(4, 2, 3).half()}, "float16"),
        ({"token_ids": (5, 0, 7, 8)}, "token 1 of 4"),
        ({"token_ids": (5, 6, 7)}, "token 3 of 4"),
        ({"generated_ids": (1, 9)}, "token 3 of 4"),
    ],
)
def test_a_response_to_something_else_is_named(change: dict[str, object], named: str) -> None:
    assert named in problem(replace(response(), **change))


def test_an_engine_that_dies_is_started_as_often_as_allowed_and_leaves_no_files(
    tmp_path: Path, staging: Path
) -> None:
    starts = tmp_path / "starts"
    python = interpreter(tmp_path, f"echo start >> {starts}; echo 'ValueError: no such weights'; exit 7")
    with process(python, restarts=2) as engine, pytest.raises(StageError) as caught:
        engine.generate(REQUEST)
    message = str(caught.value)
    assert "exit status 7" in message
    assert "ValueError: no such weights" in message
    assert "failed after 3 tries" in message
    assert starts.read_text().count("start") == 3
    assert list(staging.iterdir()) == []


def test_an_engine_that_never_answers_is_ended_with_what_it_started(tmp_path: Path, staging: Path) -> None:
    pids = tmp_path / "pids"
    python = interpreter(tmp_path, f"sleep 600 & echo $! $$ > {pids}; wait")
    with (
        process(python, timeout_s=1) as engine,
        pytest.raises(StageError, match="no answer from vllm"),
    ):
        engine.start()
    child, parent = pids.read_text().split()
    assert not Path(f"/proc/{parent}").exists()
    deadline = time.monotonic() + 10  # a killed process ends when it is next scheduled
    while not is_gone(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_gone(child)
    assert list(staging.iterdir()) == []


def is_gone(pid: str) -> bool:
    """Ended, though its parent of last resort may not have collected it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


def test_a_staging_folder_that_cannot_be_made_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(StageError, match=r"missing.*TMPDIR"):
        process(Path(sys.executable)).generate(REQUEST)


def test_a_python_without_vllm_is_named() -> None:
    with pytest.raises(StageError, match="has no vllm: install it in an environment of its own"):
        vllm_versions(Path(sys.executable))
    with pytest.raises(StageError, match="cannot be run"):
        vllm_versions(Path("/nonexistent/python"))


@pytest.mark.parametrize(
    "values",
    [
        {"tensor_parallel": 0},
        {"gpu_memory": 0.0},
        {"gpu_memory": 1.5},
        {"max_batched_tokens": -1},
        {"vllm_timeout": 0.0},
        {"vllm_restarts": -1},
        {"quantization": "fp8"},
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match="--" + next(iter(values)).replace("_", "-")):
        VllmSettings(**values)  # type: ignore[arg-type]


def test_the_python_is_the_named_one_else_the_environments_else_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    assert VllmSettings().python == Path(sys.executable)
    monkeypatch.setenv(PYTHON_VARIABLE, "/from/environment")
    assert VllmSettings().python == Path("/from/environment")
    assert VllmSettings(vllm_python="/named").python == Path("/named")


def test_models_that_vllm_runs_on_other_positions_are_refused() -> None:
    check_model_type("qwen3_vl", frames_as="auto")
    check_model_type("qwen2_5_vl", frames_as="images")
    with pytest.raises(StageError, match=r"qwen2_5_vl.*--backend transformers"):
        check_model_type("qwen2_5_vl", frames_as="auto")
