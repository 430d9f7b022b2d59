"""The frozen models behind a run's features, found again for a new video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from thinkjepa.cache import FeatureSet
from thinkjepa.cache.shards.encoding import quantized, restored
from thinkjepa.stages.device import choose_device
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.encoder.base import VideoEncoder, open_encoder
from thinkjepa.stages.extract.models.runtime import quiet_transformers
from thinkjepa.stages.extract.models.weights import find_model
from thinkjepa.stages.extract.settings import ModelSettings
from thinkjepa.stages.extract.thinker.base import Thinker
from thinkjepa.stages.extract.thinker.hooks import HookedThinker

NOT_COMPARED = ("sampling", "versions", "fp8")
"""No properties of the model; other versions are only warned of."""


def load_encoder(made: FeatureSet, *, place: str | None, device: str) -> VideoEncoder:
    """The encoder that made a set, ready to run; `place` is where it lies now, None where it did.

    Raises StageError where it is not found, or would make features of another origin.
    """
    quiet_transformers()
    folder = find_model(
        place or str(made.source["model"]), revision=str(made.source["revision"]), role="encoder"
    )
    encoder = open_encoder(folder, dtype=str(made.origin["dtype"]), device=choose_device(device))
    check_origin(encoder.origin, made, flag="--encoder")
    encoder.load()
    return encoder


def load_thinker(made: FeatureSet, *, place: str | None, device: str) -> Thinker:
    """The thinker that made a set, as `load_encoder`."""
    quiet_transformers()
    origin = made.origin
    settings = ModelSettings(
        thinker=place or str(made.source["model"]),
        revision=str(made.source["revision"]),
        layers=",".join(map(str, origin["layers"])),
        prompt=origin["prompt"],
        max_new_tokens=origin["max_new_tokens"],
        thinker_size=origin["preprocessing"]["short_side_px"],
        frames_as=origin["preprocessing"].get("frames_as", "auto"),
        dtype=origin["dtype"],
    )
    folder = find_model(settings.thinker, revision=settings.revision, role="thinker")
    thinker = HookedThinker(folder, settings, dtype=str(origin["dtype"]), device=choose_device(device))
    check_origin(thinker.origin, made, flag="--thinker")
    thinker.load()
    return thinker


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
