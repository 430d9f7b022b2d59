"""The project's commands, each run in a process forked from one that has imported their libraries.

Importing torch and transformers takes seconds, a fork milliseconds. Every run is a process with its own
arguments, folder, environment, pipes and exit status. It differs where the start of Python matters: tests of
the installation, of starting times, thread counts, terminals and signals start the installed command.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

BIN = Path(sys.executable).parent
MAKERS = Path(__file__).parent
PREFIX = "thinkjepa-"


def run_command(
    name: str,
    *arguments: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    answer: str | None = None,
    timeout_s: float = 240,
) -> subprocess.CompletedProcess[str]:
    """Run a command of the project to its end. `answer` is its standard input."""
    return subprocess.run(
        [str(forking_commands() / name), *map(str, arguments)],
        cwd=cwd,
        env=env,
        input=answer,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@cache
def forking_commands(**environment: str) -> Path:
    """A folder with an executable per command, for PATH where DVC or a shell starts commands.

    `environment` is for what libraries read when they are imported: a process of its own has it.
    """
    if not hasattr(os, "pidfd_open"):  # Linux only
        return BIN
    folder = Path(tempfile.mkdtemp(prefix="commands"))
    client = folder / "client.py"
    client.write_text(f"#!{sys.executable} -IS\n{(MAKERS / 'command_client.py').read_text()}")
    client.chmod(0o755)
    for entry in entry_points(group="console_scripts"):
        if entry.name.startswith(PREFIX):
            (folder / entry.name).symlink_to(client)
    server = subprocess.Popen(
        [sys.executable, str(MAKERS / "command_server.py"), str(folder / "socket")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, **environment, "JE_ARROW_MALLOC_CONF": "background_thread:false"},
    )

    def end() -> None:
        server.communicate()
        shutil.rmtree(folder)

    atexit.register(end)
    assert server.stdout is not None
    assert server.stdout.readline(), "the server of commands has not started"
    return folder
