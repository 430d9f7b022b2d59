"""One settings field = one flag = one help line = one key of params.yaml.

Settings are groups of `stages.settings`. `with_settings` turns their fields into typer options, rare ones in
a panel of advanced options. `parse_settings` makes an instance from plain values of the command line or of a
section of params.yaml, unknown names refused.
"""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from thinkjepa.cache import ThinkJepaError
from thinkjepa.cache.disk.layout import cache_json
from thinkjepa.cache.records import CacheError
from thinkjepa.pipeline.cli.help import ADVANCED
from thinkjepa.stages.device import DEVICES, THREADS_HELP
from thinkjepa.stages.settings import SettingsError, flag_name

Settings = TypeVar("Settings")

Sections = Mapping[str, Mapping[str, Any]]
"""Values by field name, by section of params.yaml."""

FOLDERS = {"videos": "videos", "cache_dir": "cache_dir"}
"""Parameters of commands that a key of params.yaml may stand for: always these two."""

ParamsOption = Annotated[
    Path | None,
    typer.Option("--params", help="Take from this params.yaml what no flag says."),
]

DeviceOption = Annotated[str, typer.Option(help=f"Where to compute: {DEVICES}.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help=THREADS_HELP)]
RunCacheOption = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="The run's cache, where it is no longer where the run found it."),
]


def with_settings(
    *,
    keys: Mapping[str, str | None] = types.MappingProxyType({}),
    memory: Callable[[Path, Sections], Sections] | None = None,
    **groups: type[Any],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of settings classes: `@with_settings(clips=ClipSettings)`, and --params.

    The command receives a ready instance under the name of its parameter, here `clips`, which is a section of
    params.yaml too, unless the class names another SECTION. A flag goes before params.yaml, that before
    `memory`, that before the default. `keys` names further parameters that params.yaml may give, such as
    `{"device": "execution.device"}`; None keeps one of FOLDERS from it. `memory` receives the cache's folder
    and what flags and file give, and returns what the cache remembers.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(command, eval_str=True)
        asked = [name for name, item in signature.parameters.items() if item.annotation is typer.Context]
        own = {name: item for name, item in signature.parameters.items() if name not in (*groups, *asked)}
        required = [name for name, item in own.items() if item.default is inspect.Parameter.empty]
        shared = {name: key for name, key in {**FOLDERS, **keys}.items() if key and name in own}

        @functools.wraps(command)
        def run(*, context: typer.Context, params: Path | None, **values: Any) -> Any:
            in_file = _read_file(params)
            for name, key in shared.items():
                if not _is_given(context, name) and (found := _look_up(in_file, key)) is not None:
                    values[name] = found
            if missing := [name for name in required if values[name] is None]:
                raise SettingsError(_missing(missing[0], shared, params))
            given = {
                group: in_file.get(getattr(kind, "SECTION", group), {}) | _take_flags(kind, values, context)
                for group, kind in groups.items()
            }
            remembered = memory(values["cache_dir"], given) if memory and values["cache_dir"] else {}
            ready = {
                group: parse_settings(kind, {**remembered.get(group, {}), **given[group]})
                for group, kind in groups.items()
            }
            return command(**values, **ready, **dict.fromkeys(asked, context))

        ours = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in (("params", ParamsOption), ("context", typer.Context))
        ]
        parameters = [_optional(own[name]) if name in shared else own[name] for name in required]
        parameters += [*ours, *(item for name, item in own.items() if name not in required)]
        parameters += [_option(item, kind) for kind in groups.values() for item in _in_panels(kind)]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        return run

    return decorate


def parse_settings(kind: type[Settings], values: Mapping[str, Any], *, where: str = "") -> Settings:
    """An instance of `kind` from plain values. A list becomes comma-separated text, and a number the text of
    a text setting, as a flag has them.

    Where `kind` has PRESETS, values that are not given are those of the preset that `values` names. `where`
    is the file and section that the values come from, empty for flags.

    Raises SettingsError naming `where`, the setting, and what it allows.
    """
    prefix = f"{where}: " if where else ""
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise SettingsError(f"{prefix}unknown setting {unknown[0]!r}{meant(unknown[0], sorted(known))}")
    hints = typing.get_type_hints(kind)
    presets: Mapping[Any, Mapping[str, Any]] = getattr(kind, "PRESETS", {})
    plain = {
        **presets.get(values.get("preset"), {}),
        **{name: _asflag_name(value, hints[name]) for name, value in values.items()},
    }
    try:
        return kind(**plain)
    except ThinkJepaError as error:
        raise SettingsError(prefix + _as_keys(str(error), known) if where else str(error)) from error


def meant(name: str, known: typing.Collection[str]) -> str:
    """The end of a message about an unknown name: the known one that is near, else all of them."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else f"; known are {', '.join(known)}"


def _read_file(path: Path | None) -> Mapping[str, Any]:
    if path is None:
        return {}
    from thinkjepa.pipeline.project.params import read_given

    return read_given(path)


def _look_up(content: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key, None where there is none."""
    *sections, name = key.split(".")
    for section in sections:
        content = content.get(section, {})
    return content.get(name)


def _missing(name: str, shared: Mapping[str, str], params: Path | None) -> str:
    flag = flag_name(name)
    if name not in shared:
        return f"Missing option '{flag}'"
    if params is None:
        return (
            f"Missing option '{flag}': give it, or a file that names {shared[name]} with --params params.yaml"
        )
    return f"Missing option '{flag}': {params} does not name {shared[name]} either"


def _take_flags(kind: type[Any], values: dict[str, Any], context: typer.Context) -> dict[str, Any]:
    """Remove the fields of `kind` from `values`. Returns those that the command line gives."""
    taken = {item.name: values.pop(item.name) for item in fields(kind)}
    return {name: value for name, value in taken.items() if _is_given(context, name)}


def _is_given(context: typer.Context, name: str) -> bool:
    """True if the command line sets an option."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _as_keys(text: str, known: typing.Collection[str]) -> str:
    """A message about flags as one about the keys of a section."""

    def key(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")
        return name if name in known else found[0]

    return re.sub(r"--([a-z0-9-]+)", key, text)


def _optional(item: inspect.Parameter) -> inspect.Parameter:
    """A parameter that the command line may leave out, as params.yaml may give it."""
    if item.default is not inspect.Parameter.empty:
        return item
    plain, *rest = typing.get_args(item.annotation)
    [option] = [part for part in rest if isinstance(part, typer.models.OptionInfo)]
    option = copy.copy(option)
    option.help = f"{option.help} [required, or --params]"
    return item.replace(default=None, annotation=Annotated[plain | None, option])


def _option(item: Field[Any], kind: type[Any]) -> inspect.Parameter:
    hint = typing.get_type_hints(kind)[item.name]
    name, metavar = flag_name(item.name), None
    if typing.get_origin(hint) in (typing.Union, types.UnionType):  # typer has none: pydantic checks the text
        hint, metavar = str, _choices(hint)
    option = typer.Option(
        f"{name}/--no-{name.removeprefix('--')}" if hint is bool else name,
        help=item.metadata["help"],
        rich_help_panel=_panel(item, kind),
        metavar=metavar,
    )
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=Annotated[hint, option]
    )


def setting_option(kind: type[Any], name: str) -> typer.models.OptionInfo:
    """The option of one setting, for a command that takes it without the rest of its group."""
    item = next(item for item in fields(kind) if item.name == name)
    option: typer.models.OptionInfo = typing.get_args(_option(item, kind).annotation)[1]
    return option


def _choices(hint: Any) -> str:
    """`auto|NUMBER` for `float | Literal["auto"]`."""
    words = [word for part in typing.get_args(hint) for word in typing.get_args(part)]
    return "|".join((*words, "NUMBER"))


def _in_panels(kind: type[Any]) -> list[Field[Any]]:
    """Fields in the order of help: those of the class itself, then those of each base."""
    return sorted(fields(kind), key=lambda item: kind.__mro__.index(_owner(item, kind)))


def _panel(item: Field[Any], kind: type[Any]) -> str | None:
    """The panel of the class that declares a field, the advanced one for rare fields."""
    title: str | None = getattr(_owner(item, kind), "PANEL", None)
    return f"{ADVANCED}{title}" if title and item.metadata.get("rare") else title


def _owner(item: Field[Any], kind: type[Any]) -> type[Any]:
    """The class that declares a field."""
    return next(base for base in kind.__mro__ if item.name in vars(base).get("__annotations__", {}))


def _asflag_name(value: Any, hint: Any) -> Any:
    """A value of params.yaml as a flag would have given it."""
    if isinstance(value, list | tuple):
        return ",".join(str(part) for part in value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if hint is str and is_number else value


MOST_CLIPS = 200
"""More than a person chooses from."""


def set_names(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Feature sets that begin so, each with its model; of the cache that the line names so far."""
    cache = _cache(context)
    if cache is None:
        return []
    try:
        records = json.loads(cache_json(cache).read_bytes())["feature_sets"]
        return [
            (item["name"], str(item["source"].get("model", "")))
            for item in records
            if item["name"].startswith(incomplete)
        ]
    except (OSError, ValueError, KeyError, TypeError):  # a line that is being typed is not to be refused
        return []


def clip_names(context: typer.Context, incomplete: str) -> list[str]:
    """Ids of clips that begin so, at most MOST_CLIPS."""
    cache = _cache(context)
    if cache is None or not cache_json(cache).is_file():
        return []
    from thinkjepa.cache.tables.clips import ClipTable  # Arrow

    try:
        ids = sorted(set(ClipTable(cache).all().clip_ids.to_pylist()))
    except (CacheError, OSError, ValueError):
        return []
    return [clip_id for clip_id in ids if clip_id.startswith(incomplete)][:MOST_CLIPS]


def _cache(context: typer.Context) -> Path | None:
    folder = context.params.get("cache") or context.params.get("cache_dir")
    return Path(folder) if folder else None
