"""params.yaml: every setting of the pipeline, checked before anything runs, and its text for a new project.

Unknown keys are refused. The text lists every setting with its meaning, from the classes that check it.
`make params` writes the one of the repository.
"""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml

from thinkjepa.pipeline.cli.options import meant, parse_settings
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings, VllmSettings
from thinkjepa.stages.settings import SettingsError, expanded, setting
from thinkjepa.stages.train.model.config import Variant
from thinkjepa.stages.train.settings import TrainSettings

WORKSPACES = (".dvc", "tmp", "exps")


def project_folder(workspace: Path) -> Path:
    """The folder that relative paths of `workspace`/params.yaml are meant from.

    `workspace` as it is given, or, in an experiment's workspace, the same folder of the project that the
    experiment was queued in, absolute.
    """
    here = workspace.resolve()
    root = next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), None)
    if root is None:
        return workspace
    parts = root.parts
    for start in range(len(parts) - len(WORKSPACES), 0, -1):
        if parts[start : start + len(WORKSPACES)] == WORKSPACES:
            return Path(*parts[:start]) / here.relative_to(root)
    return workspace


def model_place(name: str, project: Path) -> str:
    """A model's name, or its folder in the project, if there is one of that name."""
    folder = project / expanded(name)
    return str(folder) if name and folder.is_dir() else name


MAX_BYTES = 2**20
MAX_VALUES = 10_000
MAX_DEPTH = 8
"""Limits of a params.yaml: ours has 200 values, three deep."""

Settings = TypeVar("Settings")

Item = TypeVar("Item", str, int)

SECTIONS: Mapping[str, type[Any]] = {
    "clips": ClipSettings,
    "models": ModelSettings,
    "vllm": VllmSettings,
    "execution": ExecutionSettings,
    "split": SplitRule,
    "train": TrainSettings,
}

MATRIX_CELL = ("variant", "seed")
"""Settings of a training run that the matrix sets."""


@dataclass(frozen=True, slots=True)
class Folders:
    """The project's folders: keys of params.yaml without a section."""

    videos: str = setting("videos", "Folder of the videos, searched recursively.")
    clips_file: str = setting(
        "",
        "Table (csv or parquet) that names the clips: video, split_s or split_frame, optional start_s, "
        "end_s, group and partition. Empty: they are cut by the rule under clips.",
    )
    cache_dir: str = setting("features", "Folder of the feature cache, which experiments share.")
    runs_dir: str = setting(
        "runs",
        "Folder that keeps all finished runs with their weights, those of experiments too; empty: a run "
        "stays in results/runs.",
    )


@dataclass(frozen=True, slots=True)
class Matrix:
    """The runs of a project: every variant with every seed."""

    variants: tuple[str, ...] = setting(
        ("thinkjepa", "jepa", "vlm"),
        "Models to train: thinkjepa (guided), jepa (unguided), vlm (thinker features only), poses (hands "
        "from observed poses alone; it needs hand labels, so it is not trained by default). A list, also of "
        "one: [jepa].",
    )
    seeds: tuple[int, ...] = setting(
        (0, 1, 2, 3, 4),
        "Seeds of initial weights and data order: each variant is trained with each. A list, also of one: "
        "[0]. Of a bare number dvc says: 'Value' object is not iterable.",
    )


@dataclass(frozen=True, slots=True)
class Params:
    """The content of params.yaml, checked. Paths are relative to its folder, or absolute."""

    project: Path
    """The project's folder, of which the pipeline's may be a copy: see `project_folder`."""
    videos: Path
    clips_file: Path | None
    """The user's table of clips. None where the rule cuts them."""
    cache_dir: Path
    runs_dir: Path | None
    """Folder of the runs of all experiments. None where each stays in its own results."""
    clips: ClipSettings
    models: ModelSettings
    vllm: VllmSettings
    execution: ExecutionSettings
    split: SplitRule
    train: TrainSettings
    variants: tuple[str, ...]
    seeds: tuple[int, ...]

    def training(self, *, variant: str, seed: int) -> TrainSettings:
        """Training settings of one cell of the matrix: a sweep over guidance has one `jepa`, not many."""
        given = {**asdict(self.train), "variant": variant, "seed": seed}
        return parse_settings(TrainSettings, given).in_effect()


def read_params(path: Path) -> Params:
    """Raises SettingsError naming file, section and setting."""
    content = _read_mapping(path)
    known = [*(item.name for item in (*fields(Folders), *fields(Matrix))), *SECTIONS]
    if unknown := sorted(set(content) - set(known)):
        raise SettingsError(f"{path}: unknown key {unknown[0]!r}{meant(unknown[0], known)}")
    folders = _folders(content, path)
    train = _section(content, "train", path)
    if fixed := sorted(set(MATRIX_CELL) & set(train)):
        raise SettingsError(f"{path}: train.{fixed[0]} is set by the matrix: use the key {fixed[0]}s")
    project, models = project_folder(path.parent), _settings(ModelSettings, content, "models", path)
    return Params(
        project=project,
        videos=project / folders.videos,
        clips_file=project / folders.clips_file if folders.clips_file else None,
        cache_dir=project / folders.cache_dir,
        runs_dir=project / folders.runs_dir if folders.runs_dir else None,
        clips=_settings(ClipSettings, content, "clips", path),
        models=replace(
            models,
            thinker=model_place(models.thinker, project),
            encoder=model_place(models.encoder, project),
        ),
        vllm=_settings(VllmSettings, content, "vllm", path),
        execution=_settings(ExecutionSettings, content, "execution", path),
        split=_settings(SplitRule, content, "split", path),
        train=_settings(TrainSettings, content, "train", path),
        variants=_matrix(content, "variants", str, path),
        seeds=_matrix(content, "seeds", int, path),
    )


def read_given(path: Path) -> Mapping[str, Any]:
    """The folders and sections that params.yaml itself names, without defaults; checked like all of it."""
    params, content = read_params(path), _read_mapping(path)
    sections = {name: dict(_section(content, name, path)) for name in SECTIONS}
    folders = {role: getattr(params.models, role) for role in ("thinker", "encoder")}
    sections["models"] |= {role: name for role, name in folders.items() if role in sections["models"]}
    paths = {name: getattr(params, name) for name in ("videos", "cache_dir", "clips_file")}
    return {**paths, **sections}


def _read_mapping(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        content = yaml.safe_load(raw[:MAX_BYTES].decode("utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"cannot read {str(path)!r}: {error}") from error
    except RecursionError as error:
        raise SettingsError(f"cannot read {str(path)!r}: it is nested too deep") from error
    if len(raw) > MAX_BYTES or not _is_plain(content):
        raise SettingsError(
            f"{path}: no settings are so many or so deep: {MAX_VALUES:,} values, {MAX_DEPTH} within each "
            "other, are allowed, with names for keys"
        )
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: expected keys such as videos, cache_dir, clips")
    return content


def _is_plain(content: Any) -> bool:
    """True if a value is small as a tree: a few aliases of YAML may stand for billions of values."""
    level, seen = [content], 0
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for value in level:
            inside = list(value.values()) if isinstance(value, dict) else value
            if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
                return False
            deeper += inside if isinstance(inside, list) else []
            if (seen := seen + 1) + len(deeper) > MAX_VALUES:
                return False
        level = deeper
    return not level


def _folders(content: Mapping[str, Any], path: Path) -> Folders:
    """Videos and cache have to be named; where runs_dir is left out, runs stay in results/runs."""
    if missing := [name for name in ("videos", "cache_dir") if not isinstance(content.get(name), str)]:
        raise SettingsError(f"{path}: {missing[0]} is missing: give a folder")
    optional = {name: content.get(name, "") for name in ("clips_file", "runs_dir")}
    for name, value in optional.items():
        if not isinstance(value, str):
            raise SettingsError(f"{path}: {name} holds {value!r}, expected a path")
    return Folders(videos=content["videos"], cache_dir=content["cache_dir"], **optional)


def _matrix(content: Mapping[str, Any], name: str, kind: type[Item], path: Path) -> tuple[Item, ...]:
    """One axis of the matrix of runs; empty where it is left out, as for a cache without training."""
    items = [] if content.get(name) is None else content[name]
    if not isinstance(items, list) or not all(type(item) is kind for item in items):
        raise SettingsError(
            f"{path}: {name} holds {items!r}, expected a list of {kind.__name__}: give a list, [...]"
        )
    variants = get_args(Variant)
    if unknown := [item for item in items if name == "variants" and item not in variants]:
        raise SettingsError(f"{path}: variants has no {unknown[0]!r}{meant(unknown[0], variants)}")
    return tuple(items)


def _section(content: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    section = content.get(name) or {}
    if not isinstance(section, dict):
        raise SettingsError(f"{path}: {name} holds {section!r}, expected settings with names")
    return section


def _settings(kind: type[Settings], content: Mapping[str, Any], name: str, path: Path) -> Settings:
    return parse_settings(kind, _section(content, name, path), where=f"{path}, {name}")


WIDTH = 100

HEADING = (
    "Settings of `dvc repro`. Relative paths are meant from this folder, in experiments too. What is "
    "left out has its default. An unknown key is an error. A flag that a message names, such as --dense-fps, "
    "is the key of that name here, dense_fps."
)

OF_A_PROJECT: Mapping[str, Mapping[str, Any]] = {
    "execution": {"max_failures": "5%"},  # a step that fails over one broken video stops the whole pipeline
}
"""Settings of a new project that differ from the defaults of the command line."""

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
