"""The lock on writing a folder: one process at a time, for caches, runs, reports and predictions.

The lock is the operating system's, so it is free as soon as its holder has ended, in whatever way. A file
next to it names the holder in messages to others, and has the token that the holder's own writers check.
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import shlex
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from thinkjepa.cache.disk.files import explained_os_errors, make_folder, replace_file
from thinkjepa.cache.disk.json_text import parse_json
from thinkjepa.cache.disk.layout import holder_file, lock_file
from thinkjepa.cache.records import CacheError
from thinkjepa.cache.text import without_passwords

COMMAND_CHARACTERS = 200

POLL_S = 0.5

WAIT = "wait for it to end"


class WriteLock:
    """The right to write a folder, created where missing, or one `file` in it. A context manager.

    Raises CacheError, which ends in `remedy`, where another process has it. With `on_wait` it passes a note
    that names the other process, and waits for it instead. `token` is new each time.
    """

    def __init__(
        self, folder: Path, *, remedy: str, file: str = "", on_wait: Callable[[str], None] | None = None
    ) -> None:
        self.folder = folder
        self.token = ""
        self._file = file
        self._remedy = remedy
        self._on_wait = on_wait
        self._lock = FileLock(lock_file(folder, file))

    def __enter__(self) -> Self:
        with explained_os_errors("lock", self.folder / self._file):
            make_folder(self.folder)
            self._acquire()
            try:
                self.token = _sign_in(holder_file(self.folder, self._file))
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        holder_file(self.folder, self._file).unlink(missing_ok=True)  # writers that are still at work stop
        if self._file:  # else a lock of each file ever written would stay; filelock notices that it is gone
            lock_file(self.folder, self._file).unlink(missing_ok=True)
        self._lock.release()

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
            return
        except Timeout as error:
            record = _read(holder_file(self.folder, self._file))
            holder = f"{str(self.folder / self._file)!r} is being written by {_described(record)}"
            if self._on_wait is None:
                raise CacheError(f"{holder}: {self._remedy}") from error
        self._on_wait(f"{holder}: waiting for it to end")
        self._lock.acquire(poll_interval=POLL_S)


def ask_writers_to_stop(root: Path) -> None:
    """Ask the writers of this session to end after their current batch."""
    replace_file(holder_file(root), json.dumps({**_read(holder_file(root)), "stopping": "yes"}).encode())


def writers_should_stop(root: Path, token: str) -> bool:
    """True if the session with this token has ended, or has asked its writers to stop."""
    record = _read(holder_file(root))
    return record.get("token") != token or "stopping" in record


def check_holder(root: Path, token: str) -> None:
    """Raise CacheError where the session with this token lost the lock. An empty token is not checked.

    A writer on another machine may outlive its session. It must not write into a shard that a later session
    has given to another writer.
    """
    if token and _read(holder_file(root)).get("token") != token:
        raise CacheError(
            f"the extraction that this process writes for no longer holds {str(root)!r}: nothing more is "
            "written by it; run the extraction again"
        )


def _described(record: dict[str, str]) -> str:
    """The process that a record names."""
    if not record:
        return "another process"
    return (
        f"process {record['pid']} of {record['user']} on {record['host']}, since {record['since']} "
        f"({record['command']})"
    )


def _sign_in(path: Path) -> str:
    """Record this process next to the lock that it has. Returns the new token of its writers."""
    token = secrets.token_hex(16)
    record = {
        "token": token,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "user": _user(),
        "command": without_passwords(shlex.join(sys.argv))[:COMMAND_CHARACTERS],
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    replace_file(path, json.dumps(record).encode())
    return token


def _read(path: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        record = parse_json(path.read_bytes())
        if isinstance(record, dict) and {"token", "pid", "host", "user", "since", "command"} <= set(record):
            return {name: str(value) for name, value in record.items()}
    return {}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        return str(os.getuid())
