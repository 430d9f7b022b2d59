"""Small JSON files that are whole or not there, and whose bytes only depend on their content."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from thinkjepa.cache.disk.checksums import read_listed, replace_listed
from thinkjepa.cache.disk.json_text import parse_json
from thinkjepa.stages.errors import StageError

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""sha256 in hex digits."""


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
        value = parse_json(read_listed(path))
    except FileNotFoundError as error:
        raise StageError(f"{str(path)!r} does not exist") from error
    except (OSError, ValueError) as error:
        raise StageError(f"{str(path)!r} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise StageError(f"{str(path)!r} holds a JSON {type(value).__name__}, expected an object")
    return value


def read_record(path: Path, kind: type[Any]) -> dict[str, Any]:
    """The object stored at `path`, with the fields of a dataclass. Raises StageError for another."""
    record = read_json(path)
    check_record(record, kind, path)
    return record


def check_record(record: Mapping[str, Any], kind: type[Any], path: Path) -> None:
    """Raise StageError where a record of a file lacks fields of a dataclass, or has other values than those.

    Keys that the dataclass does not name are left alone: later versions write more.
    """
    try:
        TypeAdapter(kind).validate_json(json.dumps(record), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise StageError(
            f"{str(path)!r} is damaged or was changed by hand ({where[:100]}: {first['msg']}): restore it "
            "from a copy, or make it again"
        ) from error
