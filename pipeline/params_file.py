"""The text of a project's params.yaml: every setting with its meaning, from the classes that check it.

`make params` writes the one of the repository.
"""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

import yaml

from thinkjepa.pipeline.params import MATRIX_CELL, SECTIONS, Folders, Matrix

WIDTH = 100

HEADING = (
    "Settings of `dvc repro`. Relative paths are meant from this folder, in experiments too. What is "
    "left out has its default. An unknown key is an error. A flag that a message names, such as --dense-fps, "
    "is the key of that name here, dense_fps."
)

OF_A_PROJECT: Mapping[str, Mapping[str, Any]] = {
    "execution": {"max_failures": "5%"},  # a step that fails over one broken video stops the whole pipeline
}
"""What a project starts with that is no default of the command line."""

NOT_LISTED: Mapping[str, tuple[str, ...]] = {"train": (*MATRIX_CELL, "preset")}
"""The matrix sets a run's cell. A preset does nothing where every setting is listed: they override it."""


def params_text(changes: Mapping[str, Any] | None = None) -> str:
    """A whole params.yaml, with `changes` by section (or, of top-level keys, by key) in place of defaults."""
    changes = changes or {}
    blocks = [_comment(HEADING, indent="")]
    blocks += [_entry(item, changes, indent="") for item in fields(Folders)]
    for name, kind in SECTIONS.items():
        section = {**OF_A_PROJECT.get(name, {}), **changes.get(name, {})}
        shown = [item for item in fields(kind) if item.name not in NOT_LISTED.get(name, ())]
        entries = [_entry(item, section, indent="  ") for item in shown]
        blocks.append("\n".join([_comment(_meaning(kind), indent=""), f"{name}:", "\n".join(entries)]))
    blocks += [_entry(item, changes, indent="") for item in fields(Matrix)]
    return "\n\n".join(blocks) + "\n"


def _meaning(kind: type[Any]) -> str:
    """The first paragraph of a class's docstring."""
    return inspect.getdoc(kind).split("\n\n")[0]  # type: ignore[union-attr]


def _entry(item: Field[Any], values: Mapping[str, Any], *, indent: str) -> str:
    value = values.get(item.name, item.default)
    plain = list(value) if isinstance(value, tuple) else value
    in_one_line = None if isinstance(plain, list) else False  # yaml's words for a list, and for its key
    line = yaml.safe_dump(
        {item.name: plain}, allow_unicode=True, default_flow_style=in_one_line, width=math.inf
    )
    return _comment(item.metadata["help"], indent=indent) + "\n" + textwrap.indent(line.rstrip("\n"), indent)


def _comment(text: str, *, indent: str) -> str:
    prefix = f"{indent}# "
    return textwrap.fill(
        text,
        width=WIDTH,
        initial_indent=prefix,
        subsequent_indent=prefix,
        break_long_words=False,
        break_on_hyphens=False,
    )


if __name__ == "__main__":
    print(params_text(), end="")  # noqa: T201
