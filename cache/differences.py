"""What tells records apart: feature sets, runs, or any nested settings of the same form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from thinkjepa.cache.records import FeatureSet

SHOWN_HEX = 12
"""Digits of a digest that are enough for a person to tell two apart."""


def differing(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each record the settings that are not equal in all of them, by dotted name.

    A record without a setting that another has is given None. Names are in the order of the records.
    """
    flat = [dict(_flattened(record)) for record in records]
    names = dict.fromkeys(name for record in flat for name in record)
    apart = [name for name in names if any(record.get(name) != flat[0].get(name) for record in flat)]
    return [{name: record.get(name) for name in apart} for record in flat]


def set_differences(feature_sets: Iterable[FeatureSet]) -> dict[str, str]:
    """What tells feature sets of a kind apart, in words by the set's name: `prompt 'a', dtype bfloat16`.

    Digests are left out where a name differs that says the same: those of the weights and preprocessing
    files beside the model's name, that of a sampling beside its settings.
    """
    items = list(feature_sets)
    if len(items) < 2:
        return {item.name: "" for item in items}
    apart = differing([{"model": item.source.get("model"), **item.origin} for item in items])
    implied = {"sampling.fingerprint"} if any(_is_sampling(name) for name in apart[0]) else set[str]()
    if any("model" in settings for settings in apart):
        implied |= {"weights", "preprocessing.files"}
    return {
        item.name: ", ".join(
            f"{name} {shown(value)}" for name, value in settings.items() if name not in implied
        )
        for item, settings in zip(items, apart, strict=True)
    }


def shown(value: Any) -> str:
    """A setting's value for a message."""
    if value is None:
        return "not set"
    if isinstance(value, str):
        is_digest = len(value) == 64 and set(value) <= set("0123456789abcdef")
        return value[:SHOWN_HEX] if is_digest else repr(value)
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return str(value)


def _is_sampling(name: str) -> bool:
    return name.startswith("sampling.") and name != "sampling.fingerprint"


def _flattened(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
