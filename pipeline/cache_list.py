"""The clips of a cache as a list, and what it takes on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thinkjepa.cache import FeatureCache
from thinkjepa.cache.clip_names import clips_of
from thinkjepa.cache.layout import array_dir, index_dir
from thinkjepa.pipeline.units import counted, human_bytes

BLOCK_BYTES = 512
"""What `st_blocks` counts in, whatever the file system's block size."""

HEADER = f"{'CLIP':<24} {'SPLIT':>10}  VIDEO  FEATURE SETS"
"""Names of the columns of `describe_clips`, for a terminal: what reads a pipe gets clips alone."""


def list_clips(path: Path, *, video: str, sort: str) -> list[dict[str, Any]]:
    """A record per clip: video, split, and per set its tokens (0 for an encoder's), or why it has none.

    `video` is a name or a pattern, as `videos_named` takes it; empty for every video. Raises CacheError
    where it means none.
    """
    cache = FeatureCache.open(path)
    failed = {name: cache.index(name).failed for name in cache.feature_sets}
    tokens = {name: cache.index(name).tokens_by_clip() for name in cache.feature_sets}
    selected = clips_of(cache, video) if video else cache.clips.all().by_clip_id()
    columns = (selected.clip_ids.to_pylist(), selected.values("video"), selected.values("split_time_s"))
    clips = [
        {
            "clip_id": clip_id,
            "video": name,
            "split_s": round(split_time_s, 3),
            "tokens": {item: counts[clip_id] for item, counts in tokens.items() if clip_id in counts},
            "failed": {item: rows[clip_id].reason for item, rows in failed.items() if clip_id in rows},
        }
        for clip_id, name, split_time_s in zip(*columns, strict=True)
    ]
    orders = {
        "video": lambda clip: (clip["video"], clip["split_s"]),
        "clip_id": lambda clip: clip["clip_id"],
        "tokens": lambda clip: -max(clip["tokens"].values(), default=0),
    }
    return sorted(clips, key=orders[sort])


def page_of(clips: Sequence[dict[str, Any]], *, limit: int | None, offset: int) -> Sequence[dict[str, Any]]:
    """`limit` clips from `offset` on; all the rest where it is None or 0."""
    return clips[offset : offset + limit] if limit else clips[offset:]


def describe_clips(page: Sequence[dict[str, Any]], *, total: int, offset: int) -> str:
    """A line per clip, and which of all clips they are."""
    lines = []
    for clip in page:
        states = [
            f"{name}" + (f" ({tokens} tokens)" if tokens else "") for name, tokens in clip["tokens"].items()
        ]
        states += [f"{name} failed: {reason}" for name, reason in clip["failed"].items()]
        split = f"{clip['split_s']:8.2f} s"
        lines.append(
            f"{clip['clip_id']:<24} {split}  {clip['video']!r}  {', '.join(states) or 'no features'}"
        )
    if len(page) == total:
        return "\n".join([*lines, counted(total, "clip")])
    stop = offset + len(page)
    shown = f"clips {offset + 1} to {stop} of {total}" if page else f"no clip of {total} from {offset} on"
    following = f"; --offset {stop} continues, --limit 0 lists all" if stop < total else ""
    return "\n".join([*lines, shown + following])


def disk_usage(path: Path) -> dict[str, Any]:
    """Allocated bytes: of each array, each index, of open shards, and of all of the cache."""
    cache = FeatureCache.open(path)
    sets = {
        name: {
            "arrays": {array: allocated_bytes(array_dir(path, name, array)) for array in item.arrays},
            "index": allocated_bytes(index_dir(path, name)),
        }
        for name, item in cache.feature_sets.items()
    }
    partial = sum(_allocated(file) for file in path.rglob("*.partial"))
    return {"cache": str(path), "bytes": allocated_bytes(path), "unfinished_bytes": partial, "sets": sets}


def describe_usage(usage: dict[str, Any]) -> str:
    """Bytes as people read them, largest set first."""
    lines = []
    sizes = {name: sum(item["arrays"].values()) + item["index"] for name, item in usage["sets"].items()}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        lines.append(f"{human_bytes(sizes[name]):>10}  {name}")
        parts = {**usage["sets"][name]["arrays"], "index": usage["sets"][name]["index"]}
        lines += [f"{human_bytes(size):>10}    {part}" for part, size in parts.items()]
    if usage["unfinished_bytes"]:
        lines.append(
            f"{human_bytes(usage['unfinished_bytes']):>10}  in shards that an interrupted run left open"
        )
    return "\n".join([*lines, f"{human_bytes(usage['bytes']):>10}  {usage['cache']}"])


def allocated_bytes(folder: Path) -> int:
    """Bytes allocated under a folder, as `du` counts them."""
    return sum(_allocated(path) for path in folder.rglob("*") if path.is_file())


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * BLOCK_BYTES
