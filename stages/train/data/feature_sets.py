"""Feature sets found by what a run reads of them, whatever else they hold.

A run reads some future windows and some thinker layers. A set of the same origin that has more of them holds
the same features, so it serves the run as well as its own set does. What the run reads is named as the
extraction of one window and of these layers alone would name its set.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from thinkjepa.cache import FeatureCache, FeatureSet, Kind
from thinkjepa.cache.records import STORAGE, canonical_json, set_differences
from thinkjepa.cache.tables.catalog import named_origin, same_states
from thinkjepa.stages.data.plan import with_windows
from thinkjepa.stages.data.sampling import UNSPACED
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.model.reading import TokenReading

MEANS = TokenReading()


def num_windows(encoder: FeatureSet) -> int:
    """Future windows that an encoder's set holds."""
    return encoder.arrays["future"].shape[0]


def set_record(item: FeatureSet, reading: TokenReading = MEANS) -> dict[str, Any]:
    """The record of what a run reads of a set: its name with one window, its fingerprint, its layers.

    Segments of time are those of the slots, where `reading` has slots.
    """
    name, digest = named_origin(item.kind, _narrowed(item, windows=1))
    record: dict[str, Any] = {"name": name, "fingerprint": digest}
    if item.kind == "thinker":
        record["layers"] = list(item.layers)
    if reading.slots:
        record["slot_segments"] = item.origin.get("slot_segments")
    return record


def set_records(
    encoder: FeatureSet, guiding: FeatureSet | None, reading: TokenReading = MEANS
) -> dict[str, dict[str, Any] | None]:
    """The records of what a run reads, by kind: the thinker's is None where another set guides, or none."""
    records: dict[str, dict[str, Any] | None] = {"encoder": set_record(encoder), "thinker": None}
    return {**records, guiding.kind: set_record(guiding, reading)} if guiding else records


def guiding_record(records: Mapping[str, Mapping[str, Any] | None]) -> tuple[Kind, Mapping[str, Any]] | None:
    """The kind and the record of the set that guides, of what `set_records` gave; None where none does."""
    kinds: tuple[Kind, ...] = ("thinker", "history")
    return next(((kind, record) for kind in kinds if (record := records.get(kind))), None)


def serves(item: FeatureSet, wanted: Mapping[str, Any]) -> bool:
    """True if a set holds all that a record of `set_record`, or one of an earlier version, names."""
    layers = wanted.get("layers", item.layers)
    if not set(layers) <= set(item.layers):
        return False
    segments = item.origin.get("slot_segments")
    if wanted.get("slot_segments", segments) != segments:
        return False
    narrowed = {named_origin(item.kind, origin)[1] for origin in _all_narrowed(item, layers)}
    return wanted["fingerprint"] in narrowed


def find_serving(
    cache: FeatureCache,
    kind: Kind,
    wanted: Mapping[str, Any],
    *,
    windows: int = 1,
    arrays: Collection[str] = (),
) -> FeatureSet:
    """The set that holds what a run read, and `windows` future windows, with the fewest more.

    A set that has no features of any clip, or lacks one of `arrays`, serves only where there is no other.
    Raises StageError where none does.
    """
    serving = [item for item in cache.feature_sets.values() if item.kind == kind and serves(item, wanted)]
    held = [item for item in serving if cache.is_filled(item)] or serving
    held = [item for item in held if set(arrays) <= set(item.arrays)] or held
    if not held:
        names = ", ".join(sorted(cache.feature_sets)) or "none"
        raise StageError(
            f"cache {str(cache.path)!r} lacks feature set {wanted['name']}, on which the run was trained, or "
            f"one with more of the same features; it holds {names}: name the run's own cache"
        )
    return smallest(held, windows=windows) if kind == "encoder" else min(held, key=lambda item: item.name)


def choose_set(cache: FeatureCache, kind: Kind, selector: str | None, *, windows: int = 1) -> FeatureSet:
    """The set that `selector` names, or the only one of the cache that has features.

    Sets that differ in their windows alone are one: that with as many as are read. Raises StageError for a
    selector that names no set, even if there is only one.
    """
    encoders = cache.filled_sets("encoder") if kind == "encoder" else []
    if selector is None and len({set_record(item)["fingerprint"] for item in encoders}) == 1:
        return smallest(encoders, windows=windows)
    chosen = cache.choose_set(kind, () if selector is None else (selector,))
    if selector and not (chosen.name.startswith(selector) or chosen.fingerprint.startswith(selector)):
        raise StageError(f"no {kind} set is named {selector!r} in {str(cache.path)!r}; it has {chosen.name}")
    return chosen


NOT_SHARED = ("sampling", "fp8", "versions", *STORAGE)
"""Parts of an origin in which an encoder's set and its history may differ."""


def find_history(
    cache: FeatureCache, encoder: FeatureSet, thinker: FeatureSet | None, selector: str | None = None
) -> FeatureSet:
    """The features that the encoder of a set has of a thinker's frames, or of any thinker's where it is None.

    `selector` is the beginning of its name, whatever the thinker. Raises StageError where the cache has none
    with clips, or several.
    """

    def shared(item: FeatureSet) -> dict[str, Any]:
        return {name: value for name, value in item.origin.items() if name not in NOT_SHARED}

    held = [item for item in cache.filled_sets("history") if shared(item) == shared(encoder)]
    if selector:
        held = [item for item in held if cache.find_set(selector) == item]
    elif thinker is not None:
        held = [item for item in held if item.origin["sampling"] == thinker.origin["sampling"]]
    if not held:
        raise StageError(
            f"--guidance-source history reads the encoder's features of the thinker's frames, and "
            f"{str(cache.path)!r} has none: run thinkjepa-cache extract again with --keep-history"
        )
    kept = {item.origin["slot_segments"] for item in held if "slot_segments" in item.origin}
    if len({canonical_json(same_states(item)) for item in held}) > 1 or len(kept) > 1:
        named = "; ".join(f"{name} ({apart})" for name, apart in set_differences(held).items())
        raise StageError(f"--guidance-source history: several sets fit, {named}: name one with --set")
    return max(held, key=lambda item: (len(item.arrays), len(item.streams)))  # others hold less of it


def smallest(encoders: Sequence[FeatureSet], *, windows: int) -> FeatureSet:
    """The set with the fewest windows that are enough. Raises StageError where none has enough."""
    in_order = sorted(encoders, key=num_windows)
    if enough := [item for item in in_order if num_windows(item) >= windows]:
        return enough[0]
    most, steps = in_order[-1], in_order[-1].arrays["future"].shape[1]
    raise StageError(
        f"{windows * steps} latent steps are {windows} future windows, {most.name} has {num_windows(most)}: "
        f"extract into this cache with --future-windows {windows}, or ask for up to "
        f"{num_windows(most) * steps} steps"
    )


def _all_narrowed(item: FeatureSet, layers: Sequence[int]) -> Iterator[Mapping[str, Any]]:
    """The set's own origin, and those of smaller requests that it holds."""
    yield item.origin
    if item.kind == "encoder":
        yield from (_narrowed(item, windows=number) for number in range(1, num_windows(item)))
    else:
        yield _narrowed(item, windows=1)
    if item.kind == "thinker":
        yield {**_narrowed(item, windows=1), "layers": list(layers)}


def _narrowed(item: FeatureSet, *, windows: int) -> Mapping[str, Any]:
    """The origin with only the first windows; as it is where these need not be those of fewer windows.

    A thinker's is without the choice of arrays, as sets of versions up to 0.2 have it.
    """
    if item.kind != "encoder":
        return {name: value for name, value in item.origin.items() if name not in STORAGE}
    sampling = item.origin.get("sampling", {})
    if num_windows(item) <= windows or sampling.get("rule") == UNSPACED:
        return item.origin
    return {**item.origin, "sampling": with_windows(sampling, windows)}
