"""A cache's own settings as defaults of a command, and said to the reader as flags."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from thinkjepa.cache.disk.layout import cache_json, extraction_file
from thinkjepa.pipeline.cli.console import errors, loading
from thinkjepa.pipeline.cli.options import Sections, parse_settings
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.extract.settings import ModelSettings, VllmSettings

KINDS: Mapping[str, type[Any]] = {"models": ModelSettings, "clips": ClipSettings, "vllm": VllmSettings}
"""Remembered sections, in the order in which their flags are shown."""

MODES = {"clips": "preset", "vllm": "backend"}
"""A setting of a section that gives the others another meaning: with another one, none is taken."""

PINNED = {"thinker": "revision", "encoder": "encoder_revision"}
"""A model's revision says nothing about another model."""

FIRST = ("thinker", "encoder", "prompt")
"""Flags that are shown before all others."""

SHOWN_FLAGS = 5


def cache_memory(cache_dir: Path, given: Sections) -> Sections:
    """Settings that a cache remembers and neither flags nor params.yaml give; prints them on standard error.

    `given` has the sections of the command; a folder that is no cache yet remembers nothing.
    """
    if not cache_json(cache_dir).is_file():
        return {}
    with loading():
        from thinkjepa.stages.extract.remembered import remembered_settings

    whole = remembered_settings(cache_dir)
    for name, section in whole.items():
        parse_settings(KINDS[name], section, where=f"{extraction_file(cache_dir)}, {name}")
    taken = {name: _taken(name, whole.get(name, {}), given[name]) for name in KINDS if name in given}
    flags = setting_flags(taken)
    if flags:
        rest = len(flags) - SHOWN_FLAGS
        more = f" ({rest} more: thinkjepa-cache info {shlex.quote(str(cache_dir))})" if rest > 0 else ""
        errors.print(
            f"settings of this cache: {' '.join(flags[:SHOWN_FLAGS])}{more}", soft_wrap=True, markup=False
        )
    elif not whole:
        errors.print("this cache does not tell its settings: flags and defaults hold", soft_wrap=True)
    return taken


def setting_flags(sections: Sections) -> list[str]:
    """Flags for settings that are not at their defaults, each as one would type it."""
    changed = {
        item.name: section[item.name]
        for name, kind in KINDS.items()
        for section in [sections.get(name, {})]
        for item in fields(kind)
        if item.name in section and section[item.name] != item.default
    }
    names = [name for name in FIRST if name in changed]
    names += [name for name in changed if name not in FIRST]
    return [_flag(name, changed[name]) for name in names]


def _taken(name: str, section: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A remembered section without what is given, and without what holds only together with that."""
    mode = MODES.get(name, "")
    if mode and given.get(mode, section.get(mode)) != section.get(mode):
        return {}
    dropped = {
        pin for model, pin in PINNED.items() if given.get(model, section.get(model)) != section.get(model)
    }
    return {key: value for key, value in section.items() if key not in (*given, *dropped)}


def _flag(name: str, value: Any) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {shlex.quote(f'{value:.10g}' if isinstance(value, float) else str(value))}"
