"""Names, answers and errors that others chose, on the terminal: as text, and without passwords."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from commands import run_command

from thinkjepa.cache import Failure
from thinkjepa.pipeline.cli.console import SafeConsole, errors, print_result
from thinkjepa.pipeline.cli.progress import TerminalProgress

EVIL = "a\x1b]52;c;ZXZpbA==\x07\x9b2J\u202eb"
SHOWN = "a\\u001b]52;c;ZXZpbA==\\u0007\\u009b2J\\u202eb"


def test_progress_notes_and_failures_show_escapes() -> None:
    written = io.StringIO()
    console = SafeConsole(file=written, force_terminal=True, color_system=None, width=200)
    with TerminalProgress(console) as progress:
        progress.note(f"loading {EVIL}[red] of http://me:secret@gpu7")
        progress.failed(Failure(f"{EVIL}.mp4", "thinker", f"no answer from http://me:secret@gpu7: {EVIL}"))
    text = written.getvalue()
    assert f"loading {SHOWN}[red] of http://***@gpu7" in text
    assert f"no answer from http://***@gpu7: {SHOWN}" in text
    assert not {"\x07", "\x9b", "\u202e"} & set(text)
    assert "\x1b]" not in text
    assert "secret" not in text
    assert type(errors) is SafeConsole


def test_results_show_escapes_and_json_keeps_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(False, {}, f"video {EVIL}\n  next line")
    assert capsys.readouterr().out == f"video {SHOWN}\n  next line\n"
    print_result(True, {"video": EVIL}, "")
    out = capsys.readouterr().out
    assert "\x9b" not in out
    assert json.loads(out) == {"video": EVIL}


def test_a_model_and_a_folder_of_hostile_names_are_errors_in_one_plain_line(
    tmp_path: Path, tiny_models: Path
) -> None:
    """The name of a model's folder, and what its files hold, come from whoever made it."""
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").write_bytes(b"")
    model = shutil.copytree(tiny_models / "thinker", tmp_path / "\x1b[2Jthinker")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": EVIL}))
    arguments = ("--cache-dir", tmp_path / "cache", "--encoder", tiny_models / "encoder")
    for thinker in (model, f"{EVIL}/none"):
        done = run_command(
            "thinkjepa-cache", "extract", "--videos", tmp_path / "v", *arguments, "--thinker", thinker
        )
        assert done.returncode == 2, done.stderr
        assert "error: " in done.stderr
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(done.stdout + done.stderr)


def test_no_message_about_a_server_has_its_password(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    common = ("extract", "--videos", tmp_path, "--cache-dir", tmp_path / "cache", "--vllm-states", tmp_path)
    for url, backend in (
        ("ftp://me:secret@gpu7", "vllm"),
        ("http://me:secret@gpu7", "transformers"),
        ("http://me:secret@127.0.0.1:9", "vllm"),
    ):
        done = run_command("thinkjepa-cache", *common, "--vllm-url", url, "--backend", backend)
        assert done.returncode == 2, done.stderr
        assert "secret" not in done.stdout + done.stderr
