"""Contents of a cache as records and as text: clips, feature sets, bytes on disk, removals."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from thinkjepa.cache import (
    CacheError,
    FeatureCache,
    FeatureSet,
    Removal,
    WriteSession,
    plan_clip_removal,
    plan_set_removal,
    remove,
)
from thinkjepa.cache.disk.layout import array_dir, failures_file, index_dir
from thinkjepa.cache.records import ERROR, KINDS, set_differences
from thinkjepa.cache.shards.assignment import is_unfinished
from thinkjepa.pipeline.cli.console import counted, human_bytes
from thinkjepa.pipeline.project.remembering import setting_flags
from thinkjepa.pipeline.report.names import clips_of, find_clip_id
from thinkjepa.stages.data.framing import describe_framing, set_framing
from thinkjepa.stages.data.repeated_frames import describe_repeats, stored_repeats
from thinkjepa.stages.extract.remembered import remembered_settings

BLOCK_BYTES = 512
"""The unit of `st_blocks` on every file system."""

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
    """Bytes of each set and its arrays as text, largest set first."""
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


ERROR_CLIPS = 256
"""Clips whose stored errors are looked at: enough for a mean, and quick on a large cache."""


def cache_info(path: Path) -> dict[str, Any]:
    """Feature sets, clips, shapes, bytes on disk and failures. Raises CacheError for no cache."""
    cache = FeatureCache.open(path)
    clips = cache.clips.all().by_clip_id()
    apart = {
        name: text
        for kind in KINDS
        for name, text in set_differences(
            item for item in cache.feature_sets.values() if item.kind == kind
        ).items()
    }
    sets = [
        {**_describe_set(cache, item), "differs_by": apart[item.name]} for item in cache.feature_sets.values()
    ]
    return {
        "cache": str(path),
        "clips": len(clips),
        "videos": len(set(clips.values("video_digest"))),
        "bytes": sum(item["bytes"] for item in sets),
        "settings": setting_flags(remembered_settings(path)),
        "feature_sets": sets,
        "failures": [asdict(failure) for failure in cache.failures if failure.stage != "plan"],
        "too_short": [asdict(failure) for failure in cache.failures if failure.stage == "plan"],
        "failures_recorded": _changed(failures_file(path)),
    }


def _describe_set(cache: FeatureCache, feature_set: FeatureSet) -> dict[str, Any]:
    index = cache.index(feature_set.name)
    num_clips, lengths = len(index.clip_ids), index.token_counts
    arrays = {
        name: {
            "dims": ["clip", *spec.dims],
            "shape": [num_clips, *spec.shape],
            "dtype": spec.dtype,
            "bytes": allocated_bytes(array_dir(cache.path, feature_set.name, name)),
            **({"fp8_error": _fp8_error(cache, feature_set, name)} if spec.encoding == "fp8" else {}),
        }
        for name, spec in feature_set.arrays.items()
    }
    return {
        "name": feature_set.name,
        "kind": feature_set.kind,
        "fingerprint": feature_set.fingerprint,
        "clips": num_clips,
        "failed_clips": len(index.failed),
        "failures": _failed(cache, feature_set),
        "changed": _changed(*index_dir(cache.path, feature_set.name).glob("*.parquet")),
        **({"repeated_frames": _repeats(cache, feature_set)} if feature_set.kind == "encoder" else {}),
        "unfinished_shard": is_unfinished(cache.path, feature_set.name),
        "tokens_per_clip": [int(lengths.min()), int(lengths.max())] if lengths.any() else None,
        "bytes": sum(array["bytes"] for array in arrays.values()),
        "arrays": arrays,
        "origin": dict(feature_set.origin),
        "source": dict(feature_set.source),
    }


def _failed(cache: FeatureCache, feature_set: FeatureSet) -> list[dict[str, str]]:
    """Clips that this set has no features of, with the reason."""
    failed = cache.index(feature_set.name).failed
    sampling = feature_set.origin["sampling"]["fingerprint"]
    clips = cache.clips.sampled(feature_set.kind, sampling, within=cache.clips.all()).only(failed.keys())
    videos = dict(zip(clips.clip_ids.to_pylist(), clips.values("video"), strict=True))
    return [
        {"clip_id": clip_id, "video": videos.get(clip_id, ""), "stage": row.stage, "reason": row.reason}
        for clip_id, row in sorted(failed.items())
    ]


def _changed(*files: Path) -> str | None:
    """Time at which the newest of some files was written, UTC; None where there are none."""
    times = [path.stat().st_mtime for path in files if path.is_file()]
    return f"{datetime.fromtimestamp(max(times), UTC):%Y-%m-%d %H:%M} UTC" if times else None


def _repeats(cache: FeatureCache, feature_set: FeatureSet) -> dict[str, Any]:
    """Repeated frames of the clips with features, and the line that says so."""
    repeats = stored_repeats(cache.select(feature_set.name))
    fps = feature_set.origin["sampling"].get("fps")
    return {**repeats.to_json(), "warning": describe_repeats(repeats, fps=fps)}


def _fp8_error(cache: FeatureCache, feature_set: FeatureSet, array: str) -> dict[str, float]:
    """Relative L2 error that 8 bits add to a token: mean and largest, of some clips."""
    clip_ids = cache.index(feature_set.name).clip_ids.to_pylist()[:ERROR_CLIPS]
    if not clip_ids:
        return {}
    errors = cache.read(feature_set.name, array + ERROR, clip_ids)
    used = errors[errors > 0]
    return {"mean": float(used.mean()), "max": float(used.max())} if len(used) else {"mean": 0.0, "max": 0.0}


def describe_info(info: dict[str, Any]) -> str:
    """The record of `cache_info` as text."""
    lines = [
        f"{info['cache']}: {counted(info['clips'], 'clip')} of {counted(info['videos'], 'video')}, "
        f"{human_bytes(info['bytes'])}"
    ]
    if info["settings"]:
        lines.append("extract takes, unless told otherwise: " + " ".join(info["settings"]))
    for item in info["feature_sets"]:
        lines += ["", *_set_lines(item)]
    in_sets = {(item["clip_id"], item["stage"]) for part in info["feature_sets"] for item in part["failures"]}
    others = [item for item in info["failures"] if (item["clip_id"], item["stage"]) not in in_sets]
    recorded = f"at the settings of the last run over each video, {info['failures_recorded']}:"
    if others:
        lines += ["", f"{counted(len(others), 'failure')} {recorded}"]
        lines += [f"  {_failure_line(item)}" for item in others]
    if short := info["too_short"]:
        lines += ["", f"{counted(len(short), 'video')} too short for a clip {recorded}"]
        lines += [f"  {item['video']!r} {item['reason']}" for item in short]
    return "\n".join(lines)


def _failure_line(failure: Mapping[str, str]) -> str:
    clip = f" {failure['clip_id']}" if failure["clip_id"] else ""
    return f"{failure['video']!r}{clip} [{failure['stage']}] {failure['reason']}"


def _model_name(source: Mapping[str, Any]) -> str:
    """A hub name, or a folder's path without detours such as `first/../models`."""
    name = str(source.get("model"))
    return os.path.normpath(name) if source.get("revision") == "local" else name


def _set_lines(item: dict[str, Any]) -> list[str]:
    source, origin = item["source"], item["origin"]
    made = [
        f"{_model_name(source)} ({source.get('revision')})",
        origin["dtype"],
        f"on {source.get('device')}",
    ]
    written = f", last written {item['changed']}" if item["changed"] else ""
    kept = counted(item["clips"], "clip") if item["clips"] else "no features yet, so no default"
    lines = [f"{item['name']}: {kept}, {human_bytes(item['bytes'])}{written}"]
    lines.append("  " + ", ".join(made))
    if item["kind"] == "history":
        lines.append("  the encoder over the thinker's frames, for --guidance-source history")
    if item["differs_by"]:
        lines.append(f"  unlike the other {item['kind']} sets: {item['differs_by']}")
    if item["kind"] == "thinker":
        layers = " ".join(str(layer) for layer in origin["layers"])
        lines.append(f"  prompt {origin['prompt']!r}, {origin['max_new_tokens']} new tokens, layers {layers}")
    if view := _view(item):
        lines.append(f"  sees {view}")
    sampling = {name: value for name, value in origin["sampling"].items() if name != "fingerprint"}
    lines.append("  sampling: " + ", ".join(f"{name} {value}" for name, value in sampling.items()))
    for name, array in item["arrays"].items():
        shape = " x ".join(f"{dim} {n}" for dim, n in zip(array["dims"], array["shape"], strict=True))
        lines.append(f"  {name:<14} {array['dtype']:<8} {shape} ({human_bytes(array['bytes'])})")
        if error := array.get("fp8_error"):
            off = f"tokens are off by {error['mean']:.1%}, {error['max']:.1%} at most"
            lines.append(f"  {'':<14} kept in 8 bits: {off}")
    if item["tokens_per_clip"]:
        lines.append("  tokens per clip {} to {}".format(*item["tokens_per_clip"]))
    if warning := item.get("repeated_frames", {}).get("warning"):
        lines.append(f"  warning: {warning}")
    if item["failures"]:
        lines.append(f"  {counted(len(item['failures']), 'clip')} failed in this set:")
        lines += [f"    {_failure_line(failure)}" for failure in item["failures"]]
    if item["unfinished_shard"]:
        lines.append("  an interrupted run left a shard open: run the same extraction again to finish it")
    return lines


def _view(item: dict[str, Any]) -> str:
    """The part of a frame that the model of a set sees, in words. Empty where the set did not record it."""
    if item["kind"] != "thinker":
        framing = set_framing(item["source"])
        return describe_framing(framing) if framing else ""
    framing = item["origin"].get("preprocessing", {}).get("view")
    return f"{describe_framing(framing)}, as the encoder" if framing else "whole frames"


def plan(path: Path, *, feature_set: str, clip_ids: Sequence[str], video: str) -> Removal:
    """The removal of a set, of clips or of videos. Raises CacheError unless one is named and found."""
    if sum(map(bool, (feature_set, clip_ids, video))) != 1:
        raise CacheError("rm: name what to remove, with one of --set NAME, --clip ID or --video PATTERN")
    cache = FeatureCache.open(path)
    if feature_set:
        return plan_set_removal(cache, feature_set)
    if video:
        return plan_clip_removal(cache, clips_of(cache, video).clip_ids.to_pylist())
    return plan_clip_removal(cache, [find_clip_id(cache, name) for name in clip_ids])


def run_removal(path: Path, removal: Removal, *, labels: bool) -> None:
    """Remove while holding the cache's lock, so that no other process writes meanwhile."""
    with WriteSession(path) as session:
        remove(session, removal, labels=labels)


def describe_removal(removal: Removal) -> str:
    """One line: the set or the clips, shard files, bytes freed."""
    what = (
        f"set {removal.feature_sets[0]}" if removal.feature_sets else counted(len(removal.clip_ids), "clip")
    )
    return f"{what}, {counted(removal.num_shards, 'shard file')}, {human_bytes(removal.freed_bytes)}"
