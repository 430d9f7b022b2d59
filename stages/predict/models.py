"""The frozen models behind a run's features, found again for a new video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from thinkjepa.cache import FeatureSet
from thinkjepa.cache.records import STORAGE
from thinkjepa.cache.shards.encoding import quantized, restored
from thinkjepa.cache.tables.catalog import read_last_extraction
from thinkjepa.stages.device import choose_device
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.runs import candidates
from thinkjepa.stages.extract.encoder.base import VideoEncoder, open_encoder
from thinkjepa.stages.extract.models.runtime import quiet_transformers
from thinkjepa.stages.extract.models.weights import find_model
from thinkjepa.stages.extract.remembered import LOCAL
from thinkjepa.stages.extract.settings import ModelSettings
from thinkjepa.stages.extract.thinker.base import Thinker
from thinkjepa.stages.extract.thinker.hooks import HookedThinker
from thinkjepa.stages.settings import expanded

NOT_COMPARED = ("sampling", "versions", "fp8", *STORAGE)
"""No properties of the model; other versions are only warned of."""


def load_encoder(made: FeatureSet, cache: Path, *, place: str | None, device: str) -> VideoEncoder:
    """The encoder that made a set of a cache, ready to run; `place` is where it lies now, None where it did.

    Raises StageError where it is not found, or would make features of another origin.
    """
    quiet_transformers()
    name = place or found_model(made, cache)
    folder = find_model(name, revision=str(made.source["revision"]), role="encoder")
    encoder = open_encoder(
        folder,
        dtype=str(made.origin["dtype"]),
        device=choose_device(device),
        fit=made.origin["preprocessing"].get("fit", "crop"),
    )
    check_origin(encoder.origin, made, flag="--encoder")
    encoder.load()
    return encoder


def load_thinker(made: FeatureSet, cache: Path, *, place: str | None, device: str) -> Thinker:
    """The thinker that made a set of a cache, as `load_encoder`."""
    quiet_transformers()
    origin = made.origin
    settings = ModelSettings(
        thinker=place or found_model(made, cache),
        revision=str(made.source["revision"]),
        layers=",".join(map(str, origin["layers"])),
        prompt=origin["prompt"],
        max_new_tokens=origin["max_new_tokens"],
        thinker_size=origin["preprocessing"]["short_side_px"],
        frames_as=origin["preprocessing"].get("frames_as", "auto"),
        dtype=origin["dtype"],
        keep=",".join(origin.get("keep", ("pooled", "tokens"))),
        slot_segments=origin.get("slot_segments", 1),
    )
    folder = find_model(settings.thinker, revision=settings.revision, role="thinker")
    thinker = HookedThinker(
        folder,
        settings,
        dtype=str(origin["dtype"]),
        device=choose_device(device),
        view=origin["preprocessing"].get("view"),
    )
    check_origin(thinker.origin, made, flag="--thinker")
    thinker.load()
    return thinker


def found_model(made: FeatureSet, cache: Path) -> str:
    """A model's hub name, or its folder: as it was named, as the last extraction recorded it, or found from
    one above the cache. Raises StageError where the folder is gone.
    """
    name = str(made.source["model"])
    if made.source["revision"] != LOCAL:
        return name
    paths = candidates(expanded(name), cache)
    last = read_last_extraction(cache)
    if last.get(f"{made.kind}_set") == made.name:
        try:
            paths.insert(1, Path(last["settings"]["models"][made.kind]))
        except (KeyError, TypeError) as error:
            raise StageError(
                f"extraction.json of cache {str(cache)!r} was changed by hand: remove it, and name the model "
                f"with --{made.kind}"
            ) from error
    for path in paths:
        if path.is_dir():
            return str(path)
    raise StageError(
        f"the {made.kind} that made {made.name} is not in its folder {name!r}, seen from this folder or from "
        f"one above the cache {str(cache)!r}: name its folder with --{made.kind}"
    )


def check_origin(found: Mapping[str, Any], made: FeatureSet, *, flag: str) -> None:
    """Raises StageError where a model found would make other features than the run was trained on."""
    names = sorted((set(found) | set(made.origin)) - set(NOT_COMPARED))
    if differing := [name for name in names if found.get(name) != made.origin.get(name)]:
        name = differing[0]
        raise StageError(
            f"{flag}: the model found differs from the one that made {made.name} in {', '.join(differing)} "
            f"({name}: {found.get(name)!r}, the run's {made.origin.get(name)!r}): "
            "name the folder or hub model that the features came from"
        )


def as_stored(values: Tensor, array: str, made: FeatureSet) -> Tensor:
    """Values as the set's readers get them: rounded to 8 bits where it stores an array so."""
    if array not in made.origin.get("fp8", ()):
        return values
    return restored(*quantized(values), values.dtype)


def version_differences(found: Mapping[str, Any], made: FeatureSet) -> list[str]:
    """Libraries whose version is another than when the features were made."""
    then = made.origin["versions"]
    now = found["versions"]
    return [
        f"other versions than the features were made with: {name} {now[name]}, then {then.get(name)}"
        for name in now
        if now[name] != then.get(name)
    ]
