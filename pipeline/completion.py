"""What the shell completes from a cache: names of its feature sets, ids of its clips."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from thinkjepa.cache.errors import CacheError
from thinkjepa.cache.layout import cache_json

MOST_CLIPS = 200
"""More than a person chooses from."""


def set_names(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Feature sets that begin so, each with its model; of the cache that the line names so far."""
    cache = _cache(context)
    if cache is None:
        return []
    try:
        records = json.loads(cache_json(cache).read_bytes())["feature_sets"]
        return [
            (item["name"], str(item["source"].get("model", "")))
            for item in records
            if item["name"].startswith(incomplete)
        ]
    except (OSError, ValueError, KeyError, TypeError):  # a line that is being typed is not to be refused
        return []


def clip_names(context: typer.Context, incomplete: str) -> list[str]:
    """Ids of clips that begin so, at most MOST_CLIPS."""
    cache = _cache(context)
    if cache is None or not cache_json(cache).is_file():
        return []
    from thinkjepa.cache.clips import ClipTable  # Arrow

    try:
        ids = sorted(set(ClipTable(cache).all().clip_ids.to_pylist()))
    except (CacheError, OSError, ValueError):
        return []
    return [clip_id for clip_id in ids if clip_id.startswith(incomplete)][:MOST_CLIPS]


def _cache(context: typer.Context) -> Path | None:
    folder = context.params.get("cache") or context.params.get("cache_dir")
    return Path(folder) if folder else None
