"""An append-only file of JSON lines, each with its own checksum, for work that may be killed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from thinkjepa.cache.disk import explained_os_errors
from thinkjepa.cache.fingerprint import canonical_json
from thinkjepa.cache.shard import crc32c


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one record and make it durable."""
    body = canonical_json(dict(record)).encode()
    with explained_os_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(b"%08x %s\n" % (_checksum(body), body))
            file.flush()
            os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Whole records in order. A torn tail (a run killed while appending) is cut off the file."""
    if not path.exists():
        return []
    records: list[dict[str, Any]] = []
    with explained_os_errors("read", path), path.open("r+b") as file:
        whole = 0
        for line in file:
            body = line[9:-1]
            if not line.endswith(b"\n") or line[:9] != b"%08x " % _checksum(body):
                break
            records.append(json.loads(body))
            whole += len(line)
        file.truncate(whole)
    return records


def remove(path: Path) -> None:
    with explained_os_errors("remove", path):
        path.unlink(missing_ok=True)


def _checksum(body: bytes) -> int:
    return crc32c(np.frombuffer(body, dtype=np.uint8))
