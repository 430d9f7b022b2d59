"""extraction.json: the sets and settings of a cache's last extraction, which the next one continues with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thinkjepa.cache.disk import explained_os_errors
from thinkjepa.cache.errors import CacheError
from thinkjepa.cache.layout import extraction_file
from thinkjepa.cache.ledger import read_listed, replace_listed


def read_last_extraction(root: Path) -> Mapping[str, Any]:
    """The record as it was written; empty where the cache has none, as that of an older version or a merge.

    Raises CacheError where the file is damaged.
    """
    path = extraction_file(root)
    if not path.is_file():
        return {}
    with explained_os_errors("read", path):
        content = read_listed(path)
    try:
        record = json.loads(content)
    except ValueError as error:
        raise CacheError(
            f"{str(path)!r} is damaged ({error}): remove it, and give settings by flags"
        ) from error
    if not isinstance(record, dict):
        raise CacheError(
            f"{str(path)!r} is no record of an extraction: remove it, and give settings by flags"
        )
    return record


def write_last_extraction(root: Path, record: Mapping[str, Any]) -> None:
    """Replace the record. The caller holds the cache for writing."""
    if read_last_extraction(root) != record:
        text = json.dumps(record, indent=2, ensure_ascii=False, sort_keys=True)
        replace_listed(extraction_file(root), (text + "\n").encode())
