"""A process of ours that reads untrusted files and can be killed: it may hang, abort or ask for too much.

The parent sends requests over a pipe (JSON, nothing is pickled) and kills the child when no answer comes in
time. Both sides import this module, so it imports nothing that is slow to import.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from thinkjepa.stages.confinement import KILLED_FOR_TIME
from thinkjepa.stages.errors import StageError

Message = dict[str, Any]

START_TIMEOUT_S = 120.0
"""For the child's own start (interpreter, numpy, libraries): half a second on an idle machine."""

KILLED = (signal.SIGKILL, signal.SIGBUS)
"""Signals that end a process where memory runs out, its own or the shared one."""

EXIT_TIMEOUT_S = 10.0
"""From the end of the pipe to the end of the process that closed it."""

START_REMEDIES = {
    errno.EAGAIN: "too many processes: end some, or raise the limit with `ulimit -u`",
    errno.EMFILE: "too many open files: raise the limit with `ulimit -n`",
    errno.ENFILE: "too many open files on this machine: end some processes",
    errno.ENOMEM: "no memory is left: end some processes",
    errno.ENOENT: "this Python is gone: install the environment again",
    errno.EACCES: "this Python may not be run: check the mode of its file, or install the environment again",
}


class NoAnswerError(Exception):
    """No answer came in time. The child has been ended."""


class ChildEndedError(Exception):
    """The child ended without an answer. The message says how, as `was killed (signal 9), ...`."""

    was_slow = False
    """Whether its processor time was used up."""


class ChildProcess:
    """A module of ours that runs in a process of its own and answers requests.

    The module gets the descriptor of its end of the pipe as its first argument, `handles` (descriptors that
    it inherits) as the next ones, then `arguments`. It sends one empty message when it is ready.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        name: str,
        handles: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the process. Raises StageError where there can be none.

        `name` is what messages call it, `environment` is added to that of this process.
        """
        self.name = name
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                inherited = (theirs.fileno(), *handles)
                self._pipe = Connection(ours.detach())
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", module, *map(str, inherited), *arguments],
                    pass_fds=inherited,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, **(environment or {})},
                    process_group=0,  # Ctrl-C is for us: a child that ends looks like a broken file
                )
        except OSError as error:
            reason = START_REMEDIES.get(error.errno or 0, error.strerror or str(error))
            raise StageError(f"cannot start {name}: {reason}") from error

    def wait_until_ready(self) -> None:
        """Wait for the end of its start.

        Raises StageError where it does not start, ChildEndedError where it is killed meanwhile.
        """
        try:
            self.answer(START_TIMEOUT_S)
        except (NoAnswerError, ChildEndedError) as error:
            if self._process.returncode == -signal.SIGKILL and isinstance(error, ChildEndedError):
                raise
            how = (
                "no answer" if isinstance(error, NoAnswerError) else f"exit status {self._process.returncode}"
            )
            raise StageError(
                f"{self.name} does not start ({how}): are memory, processes and open files left "
                "(`ulimit -a`), and is the Python environment whole?"
            ) from error

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """True if the process is gone, as after the end of the thread that started it."""
        return self._process.poll() is not None

    def send(self, request: Mapping[str, Any]) -> None:
        """Send a request. Raises ChildEndedError."""
        try:
            self._pipe.send_bytes(json.dumps(request).encode())
        except OSError as error:
            raise self._ended() from error

    def answer(self, timeout_s: float) -> Message:
        """The next message. Raises NoAnswerError and ChildEndedError. The process is gone then."""
        answer: Message = json.loads(self.receive(timeout_s))
        return answer

    def receive(self, timeout_s: float) -> bytes:
        """The bytes that follow a message. Raises as `answer`."""
        if not self._pipe.poll(timeout_s):
            self.stop()
            raise NoAnswerError(f"no answer for {timeout_s:.3g} s")
        try:
            return self._pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._ended() from error

    def kill(self) -> None:
        """Kill the process, also from another thread: whoever waits for it gets ChildEndedError."""
        self._process.kill()

    def stop(self) -> None:
        """End the process, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()

    def _ended(self) -> ChildEndedError:
        status = self._process.wait(timeout=EXIT_TIMEOUT_S)
        self.stop()
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        if -status in KILLED:
            return ChildEndedError(f"was killed ({how}), perhaps for lack of memory")
        if status == -KILLED_FOR_TIME:
            slow = ChildEndedError("used up its processor time, ended it")
            slow.was_slow = True
            return slow
        return ChildEndedError(f"ended by itself ({how}): the file is malformed")


def send(pipe: Connection, message: Mapping[str, Any]) -> None:
    """Send a message from the child."""
    pipe.send_bytes(json.dumps(message).encode())


def next_request(pipe: Connection) -> Message | None:
    """The parent's next request, None where the parent is gone."""
    try:
        request: Message = json.loads(pipe.recv_bytes())
    except (EOFError, OSError):
        return None
    return request
