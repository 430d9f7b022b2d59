"""Commands that tests fork are processes like the installed ones, from their arguments to their end."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from commands import BIN, forking_commands, run_command

WRONG = ("info", "nowhere", "--nonsense")


@pytest.mark.parametrize("arguments", [WRONG, ("--help",), (), ("info", "nowhere"), ("--version",)])
def test_a_forked_command_says_and_returns_what_the_installed_one_does(arguments: tuple[str, ...]) -> None:
    line = [str(BIN / "thinkjepa-cache"), *arguments]
    installed = subprocess.run(line, capture_output=True, text=True, check=False)
    forked = run_command("thinkjepa-cache", *arguments)
    assert (forked.returncode, forked.stdout, forked.stderr) == (
        installed.returncode,
        installed.stdout,
        installed.stderr,
    )


def test_folder_environment_and_standard_input_are_those_of_the_caller(tmp_path: Path) -> None:
    run_command("thinkjepa-init", "here", cwd=tmp_path)
    assert (tmp_path / "here" / "params.yaml").is_file()
    narrow = run_command("thinkjepa-cache", "--help", env={**os.environ, "COLUMNS": "60"}).stdout
    wide = run_command("thinkjepa-cache", "--help", env={**os.environ, "COLUMNS": "140"}).stdout
    assert max(map(len, narrow.splitlines())) <= 60 < max(map(len, wide.splitlines()))


def test_a_command_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_command("thinkjepa-sample", "videos", tmp_path, "--num-videos", 100_000, timeout_s=5)
    time.sleep(1)
    written = len(list(tmp_path.iterdir()))
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) == written > 0


def test_commands_run_at_once() -> None:
    runs = [
        subprocess.Popen([forking_commands() / "thinkjepa-cache", *WRONG], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert len({run.communicate()[1] for run in runs}) == 1
    assert {run.returncode for run in runs} == {2}
