"""The settings of a cache's last extraction, which are the defaults of its next one.

They are in the record of the last extraction, else in the records of the feature sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from thinkjepa.cache import CacheError, FeatureCache, FeatureSet, Kind
from thinkjepa.cache.disk.layout import extraction_file
from thinkjepa.cache.tables.catalog import read_last_extraction
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.extract.models.weights import ModelFolder
from thinkjepa.stages.extract.settings import ModelSettings, VllmSettings

LOCAL = "local"
"""The revision of a model that is a folder."""

FP8_SETS: Mapping[tuple[bool, bool], str] = {
    (False, False): "none",
    (True, False): "tokens",
    (False, True): "latents",
    (True, True): "all",
}
"""The value of `--fp8` by whether the thinker's and the encoder's set store arrays in 8 bits."""

SECTIONS = ("clips", "models", "vllm")

Sections = dict[str, dict[str, Any]]


def extraction_record(
    sets: Mapping[Kind, FeatureSet],
    clips: ClipSettings,
    models: ModelSettings,
    vllm: VllmSettings,
    folders: Mapping[Kind, ModelFolder],
    *,
    dtype: str,
    clips_file: Path | None,
) -> dict[str, Any]:
    """The settings that determine the features, made definite: dtype, revisions, absolute folders.

    The table that named the clips is kept too, where there was one.

    Device, server and the path of a Python are left out: they may be of another machine.
    """
    definite = {
        "thinker": _model_name(folders["thinker"]),
        "revision": _revision(folders["thinker"], models.revision),
        "encoder": _model_name(folders["encoder"]),
        "encoder_revision": _revision(folders["encoder"], models.encoder_revision),
        "dtype": dtype,
    }
    settings = {
        "clips": asdict(clips),
        "models": {**asdict(models), **definite},
        "vllm": {"backend": vllm.backend, "quantization": vllm.quantization},
    }
    named = {"clips_file": str(clips_file.absolute())} if clips_file else {}
    return {**{f"{kind}_set": item.name for kind, item in sets.items()}, **named, "settings": settings}


def remembered_settings(cache_dir: Path) -> Sections:
    """Settings by section of params.yaml, empty where the cache does not have them.

    The record of an extraction that stored no clip counts for nothing. Raises CacheError where there is no
    cache.
    """
    cache = FeatureCache.open(cache_dir)
    thinkers, encoders = cache.filled_sets("thinker"), cache.filled_sets("encoder")
    empty = set(cache.feature_sets) - {item.name for item in (*thinkers, *encoders)}
    record = read_last_extraction(cache_dir)
    if record and not {record.get("thinker_set"), record.get("encoder_set")} & empty:
        return _sections(record.get("settings"), cache_dir)
    if len(thinkers) != 1 or len(encoders) != 1:
        return {}
    return _settings_of(thinkers[0], encoders[0], keep_history=bool(cache.filled_sets("history")))


def _sections(settings: Any, cache_dir: Path) -> Sections:
    """Sections by the names that this version knows. Raises CacheError for anything else."""
    known = isinstance(settings, dict) and set(settings) <= set(SECTIONS)
    if not known or not all(isinstance(section, dict) for section in settings.values()):
        raise CacheError(
            f"{str(extraction_file(cache_dir))!r} has not the sections {', '.join(SECTIONS)}, as another "
            "version may write it: remove it, and give settings by flags"
        )
    return {name: dict(section) for name, section in settings.items()}


def _settings_of(thinker: FeatureSet, encoder: FeatureSet, *, keep_history: bool) -> Sections:
    """The settings in the records of two sets: no choice of splits, and less in early versions."""
    origin, preprocessing = thinker.origin, thinker.origin.get("preprocessing", {})
    models = {
        "thinker": thinker.source.get("model"),
        "revision": _commit(thinker),
        "encoder": encoder.source.get("model"),
        "encoder_revision": _commit(encoder),
        "layers": ",".join(map(str, thinker.layers)) or None,
        "prompt": origin.get("prompt"),
        "max_new_tokens": origin.get("max_new_tokens"),
        "thinker_size": preprocessing.get("short_side_px"),
        "frames_as": preprocessing.get("frames_as"),
        "thinker_view": "encoder" if preprocessing.get("view") else None,
        "encoder_fit": encoder.origin.get("preprocessing", {}).get("fit"),
        "dtype": origin.get("dtype"),
        "keep": ",".join(origin["keep"]) if "keep" in origin else None,
        "slot_segments": origin.get("slot_segments"),
        "keep_history": keep_history or None,
        "fp8": FP8_SETS["fp8" in origin, "fp8" in encoder.origin],
    }
    history, dense = origin.get("sampling", {}), encoder.origin.get("sampling", {})
    release = dense.get("rule") == "release"
    clips = {
        "preset": "release" if release else "dual",
        "thinker_frames": None if release else history.get("frames"),
        "observed_frames": dense.get("observed"),
        "future_frames": dense.get("future"),
        "future_windows": dense.get("windows"),
        "dense_fps": dense.get("fps"),
    }
    vllm = {"backend": origin.get("backend"), "quantization": origin.get("quantization")}
    return {
        section: {name: value for name, value in values.items() if value is not None}
        for section, values in zip(SECTIONS, (clips, models, vllm), strict=True)
    }


def _commit(made: FeatureSet) -> str | None:
    """The commit of a hub's model, None of a local one."""
    revision = made.source.get("revision")
    return None if revision == LOCAL else revision


def _model_name(folder: ModelFolder) -> str:
    """A folder's absolute path, so that it is found from anywhere, or a hub name as it is."""
    return str(folder.path.absolute()) if folder.revision == LOCAL else folder.name


def _revision(folder: ModelFolder, asked: str) -> str:
    """The commit that the revision of a hub's model stood for."""
    return asked if folder.revision == LOCAL else folder.revision
