"""Small JSON files that are whole or not there, and whose bytes only depend on their content."""

import hashlib
import json
from pathlib import Path
from typing import Any

from thinkjepa.cache.disk.checksums import read_listed, replace_listed
from thinkjepa.stages.errors import StageError


def json_bytes(value: object) -> bytes:
    """JSON with sorted keys: equal values give equal bytes. Raises ValueError on NaN and infinity."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return f"{text}\n".encode()


def json_digest(value: object) -> str:
    """sha256 (64 hex digits) of the JSON of `value`."""
    return hashlib.sha256(json_bytes(value)).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write `value` in one step; a file of a cache is entered in its ledger."""
    replace_listed(path, json_bytes(value))


def read_json(path: Path) -> dict[str, Any]:
    """The object stored at `path`. Raises StageError where it is missing or no JSON object."""
    try:
        value = json.loads(read_listed(path))
    except FileNotFoundError as error:
        raise StageError(f"{str(path)!r} does not exist") from error
    except (OSError, ValueError) as error:
        raise StageError(f"{str(path)!r} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise StageError(f"{str(path)!r} holds a JSON {type(value).__name__}, expected an object")
    return value
