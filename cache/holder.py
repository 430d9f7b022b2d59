"""Who holds a cache for writing: a line for the next one who comes, and a mark for the holder's own writers.

The lock itself is the operating system's, and free as soon as its holder has ended, however it ended.
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import shlex
import socket
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from thinkjepa.cache.disk import replace_file
from thinkjepa.cache.errors import CacheError
from thinkjepa.cache.layout import holder_file

COMMAND_CHARACTERS = 200


def sign_in(root: Path) -> str:
    """Write who we are beside the lock that we hold; returns the new mark of our writers."""
    token = secrets.token_hex(16)
    record = {
        "token": token,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "user": _user(),
        "command": shlex.join(sys.argv)[:COMMAND_CHARACTERS],
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    replace_file(holder_file(root), json.dumps(record).encode())
    return token


def sign_out(root: Path) -> None:
    """Nobody holds the cache any more: writers that are still at work stop."""
    holder_file(root).unlink(missing_ok=True)


def describe_holder(root: Path) -> str:
    """The process that holds the cache, in words."""
    record = _read(root)
    if not record:
        return "another process"
    return (
        f"process {record['pid']} of {record['user']} on {record['host']}, since {record['since']} "
        f"({record['command']})"
    )


def check_holder(root: Path, token: str) -> None:
    """Raise CacheError where the session with this mark is not the holder; an empty mark is not checked.

    A writer on another machine may outlive its session; it must not write into a shard that a later session
    has given to somebody else.
    """
    if token and _read(root).get("token") != token:
        raise CacheError(
            f"the extraction that this process writes for no longer holds {str(root)!r}: nothing more is "
            "written by it; run the extraction again"
        )


def _read(root: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        record = json.loads(holder_file(root).read_bytes())
        if isinstance(record, dict) and {"token", "pid", "host", "user", "since", "command"} <= set(record):
            return {name: str(value) for name, value in record.items()}
    return {}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        return str(os.getuid())
