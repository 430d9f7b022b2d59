"""The settings that a cache was made with, which its next extraction takes unless told otherwise.

The last extraction's record has them. A cache without one is asked for the records of its feature sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from thinkjepa.cache import FeatureSet, Kind
from thinkjepa.cache.catalog import read_catalog
from thinkjepa.cache.last_extraction import read_last_extraction
from thinkjepa.stages.data.clips import ClipSettings
from thinkjepa.stages.extract.settings import ModelSettings
from thinkjepa.stages.extract.vllm_settings import VllmSettings
from thinkjepa.stages.extract.weights import ModelFolder

LOCAL = "local"
"""The revision of a model that is a folder."""

FP8_SETS: Mapping[tuple[bool, bool], str] = {
    (False, False): "none",
    (True, False): "tokens",
    (False, True): "latents",
    (True, True): "all",
}
"""`--fp8` by whether the thinker's and the encoder's set store arrays in 8 bits."""

Sections = dict[str, dict[str, Any]]


def extraction_record(
    sets: Mapping[Kind, FeatureSet],
    clips: ClipSettings,
    models: ModelSettings,
    vllm: VllmSettings,
    *,
    thinker: ModelFolder,
    encoder: ModelFolder,
    dtype: str,
) -> dict[str, Any]:
    """What determined the features of an extraction, made definite: dtype, revisions, absolute folders.

    How the work was done is left out: a device, a server or the path of a Python may be of another machine.
    """
    definite = {
        "thinker": _place(thinker),
        "revision": _revision(thinker, models.revision),
        "encoder": _place(encoder),
        "encoder_revision": _revision(encoder, models.encoder_revision),
        "dtype": dtype,
    }
    settings = {
        "clips": asdict(clips),
        "models": {**asdict(models), **definite},
        "vllm": {"backend": vllm.backend, "quantization": vllm.quantization},
    }
    return {"thinker_set": sets["thinker"].name, "encoder_set": sets["encoder"].name, "settings": settings}


def remembered_settings(cache_dir: Path) -> Sections:
    """Settings by section of params.yaml, empty where the cache does not tell them.

    Raises CacheError where there is no cache.
    """
    sets = read_catalog(cache_dir)
    if record := read_last_extraction(cache_dir):
        return {name: dict(section) for name, section in record.get("settings", {}).items()}
    of_kind: dict[Kind, list[FeatureSet]] = {"thinker": [], "encoder": []}
    for item in sets.values():
        of_kind[item.kind].append(item)
    if any(len(items) != 1 for items in of_kind.values()):
        return {}
    return _settings_of(of_kind["thinker"][0], of_kind["encoder"][0])


def _settings_of(thinker: FeatureSet, encoder: FeatureSet) -> Sections:
    """As far as the records of two sets tell: they have no stride."""
    origin = thinker.origin
    models = {
        "thinker": thinker.source["model"],
        "encoder": encoder.source["model"],
        "layers": ",".join(map(str, origin["layers"])),
        "prompt": origin["prompt"],
        "max_new_tokens": origin["max_new_tokens"],
        "thinker_size": origin["preprocessing"]["short_side_px"],
        "frames_as": origin["preprocessing"].get("frames_as", "auto"),
        "dtype": origin["dtype"],
        "fp8": FP8_SETS["fp8" in origin, "fp8" in encoder.origin],
    }
    for name, item in (("revision", thinker), ("encoder_revision", encoder)):
        if item.source["revision"] != LOCAL:
            models[name] = item.source["revision"]
    vllm = {"backend": origin["backend"], "quantization": origin.get("quantization", "")}
    return {
        "clips": _clips_of(origin["sampling"], encoder.origin["sampling"]),
        "models": models,
        "vllm": vllm,
    }


def _clips_of(history: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, Any]:
    windows = {"observed_frames": dense["observed"], "future_frames": dense["future"]}
    if dense["rule"] == "release":
        return {"preset": "release", **windows}
    return {
        "preset": "dual",
        **windows,
        "thinker_frames": history["frames"],
        "future_windows": dense["windows"],
        "dense_fps": dense["fps"],
    }


def _place(folder: ModelFolder) -> str:
    """A folder's absolute path, so that it is found from anywhere; a hub name as it is."""
    return str(folder.path.absolute()) if folder.revision == LOCAL else folder.name


def _revision(folder: ModelFolder, asked: str) -> str:
    """The commit that the hub's name stood for."""
    return asked if folder.revision == LOCAL else folder.revision
