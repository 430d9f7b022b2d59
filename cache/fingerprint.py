"""Identity by content: canonical JSON and the digest of files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

SET_NAME_HEX = 12
VIDEO_ID_HEX = 16


def canonical_json(value: Any) -> str:
    """The same text for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """sha256 (64 hex digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (64 hex digits) of a file's bytes. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
