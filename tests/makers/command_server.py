"""A process that has imported the commands' libraries and forks a process for each run of a command.

`commands.py` starts it as a script with the path of a socket, at which `command_client.py` asks for runs. It
ends when its standard input is closed. The modules of the command lines are left out, as they read the
environment when they are imported.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import select
import signal
import socket
import sys
import threading
from importlib.metadata import entry_points
from pathlib import Path

PACKAGES = ("thinkjepa.cache", "thinkjepa.stages")
LIBRARIES = (
    "accelerate",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "pydantic",
    "torch.utils.tensorboard",
    "transformers.models.auto.video_processing_auto",
    "transformers.models.dinov2.modeling_dinov2",
    "transformers.models.qwen3_vl.modeling_qwen3_vl",
    "transformers.models.qwen3_vl.processing_qwen3_vl",
    "transformers.models.vjepa2.modeling_vjepa2",
    "transformers.models.vjepa2.video_processing_vjepa2",
    "typer.main",
    "zarr",
)


def main() -> None:
    import_all()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors need not be waited for
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(sys.argv[1])
        listening.listen()
        print("ready", flush=True)  # noqa: T201
        while listening in select.select([listening, sys.stdin], [], [])[0]:
            client, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                supervise(client)
                return
            client.close()


def import_all() -> None:
    """Raises RuntimeError where an import has started a thread, as a fork would lose it."""
    for package in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                if error.name != "vllm":  # it has an environment of its own
                    raise
    for name in LIBRARIES:
        importlib.import_module(name)
    threads = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    if len(threads) > 1:
        raise RuntimeError(f"an import has started threads: {threads}")


def supervise(client: socket.socket) -> None:
    """Fork the command and send its exit status to the client. The command is killed if the client dies."""
    header, files, _, _ = socket.recv_fds(client, 8, 3)
    request = bytearray()
    while len(request) < int.from_bytes(header):
        request += client.recv(1 << 16)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    child = os.fork()
    if child == 0:
        client.close()
        run(**json.loads(request), files=files)
        return
    for file in files:
        os.close(file)
    if client in select.select([client, os.pidfd_open(child)], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        client.sendall(str(status).encode())
    os._exit(0)


def run(command: list[str], folder: str, environment: dict[str, str], files: list[int]) -> None:
    """Take over the client's pipes, folder, environment and arguments, then call the entry point.

    The process ends as Python does, but takes no module apart: that would copy all memory shared with the
    server, and take three quarters of a short command's time.
    """
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = io.TextIOWrapper(open(0, "rb", closefd=False))  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    sys.path[0] = str(Path(command[0]).parent)
    (entry,) = entry_points(group="console_scripts", name=Path(command[0]).name)
    try:
        status = entry.load()()
    except SystemExit as stop:
        status = stop.code
    if not isinstance(status, int | None):
        sys.exit(status)
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        sys.exit(status)
    os._exit(status or 0)


if __name__ == "__main__":
    main()
