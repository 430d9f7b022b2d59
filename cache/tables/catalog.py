"""cache.json: the schema version and the feature sets of a cache."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from thinkjepa.cache.disk.checksums import read_listed, replace_listed
from thinkjepa.cache.disk.files import explained_os_errors, refuse_links_out
from thinkjepa.cache.disk.json_text import parse_json
from thinkjepa.cache.disk.layout import READABLE, SCHEMA, cache_json, extraction_file
from thinkjepa.cache.records import (
    SET_NAME_HEX,
    STORAGE,
    ArraySpec,
    CacheError,
    Codec,
    Encoding,
    FeatureSet,
    Kind,
    fingerprint,
    set_differences,
)
from thinkjepa.cache.shards.encoding import companions


def read_catalog(root: Path) -> dict[str, FeatureSet]:
    """Feature sets by name.

    Raises CacheError where `root` is no cache, one of another schema, or one that leads out of its folder.
    """
    path = cache_json(root)
    if not path.is_file():
        raise CacheError(
            f"{str(root)!r} is not a feature cache (it has no cache.json): "
            "check the path, or run the extraction again"
        )
    refuse_links_out(root)
    with _explained_damage(path), explained_os_errors("read", path):
        content = parse_json(read_listed(path))
        schema = content["schema"]
    if schema not in READABLE:
        raise CacheError(
            f"{str(root)!r} has schema {schema!r}, this version reads {SCHEMA!r}: "
            "use the version of thinkjepa that wrote it, or extract into a new folder"
        )
    with _explained_damage(path):
        return {item.name: item for item in map(_checked_set, content["feature_sets"])}


@contextmanager
def _explained_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(
            f"{str(path)!r} is damaged or was changed by hand ({str(error)[:MAX_REASON]}): restore it "
            "from a copy"
        ) from error


def _checked_set(record: Any) -> FeatureSet:
    """The set of a record. Raises ValueError, KeyError or TypeError for an invalid or impossible one."""
    item = FeatureSet.from_json(record)
    mappings, texts = (item.origin, item.source), (item.kind, item.fingerprint)
    if not all(isinstance(value, Mapping) for value in mappings) or not re.fullmatch(
        r"[0-9a-f]{64}", texts[1]
    ):
        raise ValueError(f"{item.name}: its origin, source or fingerprint is none")
    if not all(isinstance(layer, int) and layer >= 0 for layer in item.layers):
        raise ValueError(f"{item.name}: its layers are {str(item.layers)[:60]}")
    if not all(isinstance(stream, str) for stream in item.streams):
        raise ValueError(f"{item.name}: its streams are {str(item.streams)[:60]}")
    for spec in item.arrays.values():
        if not all(isinstance(dim, str) for dim in spec.dims) or len(spec.dims) > MAX_RANK:
            raise ValueError(f"{item.name}: {spec.name} has axes {str(spec.dims)[:60]}")
        if spec.codec not in get_args(Codec) or spec.encoding not in get_args(Encoding):
            raise ValueError(
                f"{item.name}: {spec.name} is in codec {spec.codec!r}, encoding {spec.encoding!r}"
            )
        if math.prod(spec.shape) > MAX_CLIP_VALUES or math.prod(spec.chunks) > MAX_CLIP_VALUES:
            raise ValueError(f"{item.name}: {spec.name} has {spec.shape} values a clip")
    if item.rows_per_shard > MAX_ROWS_READ:
        raise ValueError(f"{item.name}: {item.rows_per_shard:,} clips a shard")
    return item


def write_catalog(root: Path, feature_sets: Mapping[str, FeatureSet]) -> None:
    """Replace cache.json. The caller has the cache locked."""
    records = [feature_sets[name].to_json() for name in sorted(feature_sets)]
    text = json.dumps(
        {"schema": SCHEMA, "feature_sets": records}, indent=2, ensure_ascii=False, sort_keys=True
    )
    replace_listed(cache_json(root), (text + "\n").encode())


def named_origin(kind: Kind, origin: Mapping[str, Any]) -> tuple[str, str]:
    """Name and fingerprint of the feature set of an origin."""
    digest = fingerprint({"kind": kind, **origin})
    return f"{kind}-{digest[:SET_NAME_HEX]}", digest


def describe_set(
    kind: Kind,
    *,
    origin: Mapping[str, Any],
    source: Mapping[str, Any],
    arrays: tuple[ArraySpec, ...],
    shard_bytes: int,
    typical_clip_bytes: int,
    codec: Codec = "none",
    fp8_arrays: Collection[str] = (),
) -> FeatureSet:
    """A feature set named by the fingerprint of its origin.

    `codec` compresses all arrays and does not change the name: a set that exists already keeps its own.
    `fp8_arrays` names float arrays to store as float8: other values, so another set.
    """
    if fp8_arrays:
        origin = {**origin, "fp8": sorted(fp8_arrays)}
    arrays = tuple(replace(spec, codec=codec) for spec in _with_fp8(arrays, fp8_arrays))
    name, digest = named_origin(kind, origin)
    return FeatureSet(
        name=name,
        kind=kind,
        fingerprint=digest,
        origin=json.loads(json.dumps(dict(origin))),
        source=dict(source),
        arrays={spec.name: spec for spec in sorted(arrays, key=lambda spec: spec.name)},
        rows_per_shard=max(1, min(MAX_ROWS_PER_SHARD, shard_bytes // max(1, typical_clip_bytes))),
    )


def _with_fp8(arrays: tuple[ArraySpec, ...], names: Collection[str]) -> Iterator[ArraySpec]:
    for spec in arrays:
        if spec.name in names:
            encoded = replace(spec, encoding="fp8")
            yield from (encoded, *companions(encoded))
        else:
            yield spec


MAX_REASON = 300
"""Characters of an error that quotes the file."""

MAX_RANK = 8

MAX_CLIP_VALUES = 2**34
"""Values of one array of a clip: a set of all tokens at 4096 x 36 x 5120 has a twentieth."""

MAX_ROWS_READ = 2**20
"""Clips of a shard that a cache may name. Larger ones are of no writer."""

MAX_ROWS_PER_SHARD = 256
"""Keeps a shard's index small: 256 clips x 8 layers x 64 token chunks x 16 B = 2 MiB."""


def resolve_set(wanted: FeatureSet, existing: Mapping[str, FeatureSet]) -> FeatureSet:
    """The existing set that serves as `wanted`, or `wanted` itself.

    A set serves when it is the same, or differs only in having more thinker layers, arrays or streams.
    """
    if wanted.name in existing:
        return existing[wanted.name]
    return next((item for item in existing.values() if _has_more(item, wanted)), wanted)


def same_states(item: FeatureSet) -> Mapping[str, Any]:
    """The origin without the choice of layers and arrays: sets that agree in it hold the same values.

    Values in 8 bits are others, so these arrays count where a set has them.
    """
    left_out = ("layers", "fp8", *STORAGE)
    return {name: value for name, value in item.origin.items() if name not in left_out}


def _has_more(item: FeatureSet, wanted: FeatureSet) -> bool:
    """True if a thinker's set, or a history, holds all that another would, the same to the last bit."""
    if item.kind != wanted.kind or item.kind == "encoder" or same_states(item) != same_states(wanted):
        return False
    of_slots = item.origin.get("slot_segments"), wanted.origin.get("slot_segments")
    return (
        set(wanted.layers) <= set(item.layers)
        and set(wanted.arrays) <= set(item.arrays)
        and set(wanted.streams) <= set(item.streams)
        and of_slots[1] in (None, of_slots[0])
        and all(spec.encoding == item.arrays[name].encoding for name, spec in wanted.arrays.items())
    )


def find_set(feature_sets: Mapping[str, FeatureSet], selector: str) -> FeatureSet:
    """The one set, of any kind, that a selector (name or fingerprint, or its beginning) names."""
    named = [item for item in feature_sets.values() if _names(selector, item)]
    if len(named) == 1:
        return named[0]
    how = "several feature sets" if named else "no feature set; there are"
    raise CacheError(f"--set {selector!r} names {how}: {_listed(named or feature_sets.values()) or 'none'}")


def choose_set(
    feature_sets: Mapping[str, FeatureSet],
    kind: Kind,
    selectors: tuple[str, ...],
    *,
    filled: Collection[str],
) -> FeatureSet:
    """The one set of `kind` that is named (or begun) by a selector, or the only one with features.

    `filled` are the names of sets that have features of any clip: one without is chosen where it is named, or
    where there is no other. A selector may name a set of another kind, but must name exactly one.
    """
    for text in selectors:
        find_set(feature_sets, text)
    of_kind = {name: item for name, item in feature_sets.items() if item.kind == kind}
    named = [item for item in of_kind.values() if any(_names(text, item) for text in selectors)]
    candidates = named or [item for item in of_kind.values() if item.name in filled] or list(of_kind.values())
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise CacheError(f"the cache holds no {kind} features: run thinkjepa-cache extract first")
    raise CacheError(
        f"the cache holds {len(candidates)} {kind} sets, choose one with --set NAME: {_listed(candidates)}"
    )


def _names(selector: str, item: FeatureSet) -> bool:
    return item.name.startswith(selector) or item.fingerprint.startswith(selector)


def _listed(feature_sets: Iterable[FeatureSet]) -> str:
    """Names of sets, each with its differences from the others of its kind, or with its model."""
    by_kind: dict[Kind, list[FeatureSet]] = {}
    for item in feature_sets:
        by_kind.setdefault(item.kind, []).append(item)
    return "; ".join(
        f"{item.name} ({apart[item.name] or item.source.get('model', '?')})"
        for items in by_kind.values()
        for apart in [set_differences(items)]
        for item in items
    )


def read_last_extraction(root: Path) -> Mapping[str, Any]:
    """The record as written, empty where the cache has none, as after a merge or from an older version.

    Raises CacheError where the file is damaged.
    """
    path = extraction_file(root)
    if not path.is_file():
        return {}
    with explained_os_errors("read", path):
        content = read_listed(path)
    try:
        record = parse_json(content)
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
    """Replace the record. The caller has the cache locked."""
    if read_last_extraction(root) != record:
        text = json.dumps(record, indent=2, ensure_ascii=False, sort_keys=True)
        replace_listed(extraction_file(root), (text + "\n").encode())
