"""One settings field = one flag = one help line = one key of params.yaml.

Settings are frozen dataclasses of the stages, each field with a default and `metadata={"help": ...}`.
`with_settings` turns their fields into typer options; `parse_settings` checks plain values (of the
command line or of a section of params.yaml) against the same fields, unknown names refused.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from types import UnionType
from typing import Annotated, Any, TypeVar, Union

import typer
from pydantic import TypeAdapter, ValidationError

from thinkjepa.cache import ThinkJepaError

Settings = TypeVar("Settings")


class SettingsError(ThinkJepaError):
    """A setting has an unknown name or a value that is not allowed."""


def with_settings(**groups: type[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of settings classes: `@with_settings(clips=ClipSettings)`.

    The command receives a ready instance under the name of its parameter, here `clips`.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(command, eval_str=True)

        @functools.wraps(command)
        def run(*, context: typer.Context, **values: Any) -> Any:
            for name, kind in groups.items():
                own = {item.name: values.pop(item.name) for item in fields(kind)}
                given = {key: value for key, value in own.items() if _is_given(context, key)}
                values[name] = parse_settings(kind, given)
            return command(**values)

        parameters = [item for name, item in signature.parameters.items() if name not in groups]
        parameters += [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
        parameters += [_option(item, kind) for kind in groups.values() for item in fields(kind)]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        return run

    return decorate


def parse_settings(kind: type[Settings], values: Mapping[str, Any], *, where: str = "") -> Settings:
    """An instance of `kind` from plain values; a list becomes comma-separated text, as a flag has it.

    Where `kind` has PRESETS, values that are not given are those of the preset that `values` names.

    Raises SettingsError naming `where` the setting stands, the setting, and what it allows.
    """
    place = f"{where}: " if where else ""
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        listed = ", ".join(sorted(known))
        raise SettingsError(f"{place}unknown setting {unknown[0]!r}; known are {listed}")
    presets: Mapping[Any, Mapping[str, Any]] = getattr(kind, "PRESETS", {})
    plain = {
        **presets.get(values.get("preset"), {}),
        **{name: _comma_separated(value) for name, value in values.items()},
    }
    try:
        return TypeAdapter(kind).validate_python(plain)
    except ValidationError as error:
        raise SettingsError(place + _first_problem(error)) from error


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether the command line says something about an option."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _first_problem(error: ValidationError) -> str:
    first, *others = error.errors()
    same = [item for item in others if first["loc"] and item["loc"][:1] == first["loc"][:1]]  # of a union
    message = " or ".join(item["msg"].removeprefix("Value error, ") for item in (first, *same))
    if not first["loc"]:
        return message
    flag = "--" + str(first["loc"][0]).replace("_", "-")
    return f"{flag} {first['input']!r}: {message}"


def _option(item: Field[Any], kind: type[Any]) -> inspect.Parameter:
    hint = typing.get_type_hints(kind)[item.name]
    metavar = None
    if typing.get_origin(hint) in (Union, UnionType):  # typer has none: pydantic checks the text
        hint, metavar = str, _choices(hint)
    option = typer.Option("--" + item.name.replace("_", "-"), help=item.metadata["help"], metavar=metavar)
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=Annotated[hint, option]
    )


def _choices(hint: Any) -> str:
    """`auto|NUMBER` for `float | Literal["auto"]`."""
    words = [word for part in typing.get_args(hint) for word in typing.get_args(part)]
    return "|".join((*words, "NUMBER"))


def _comma_separated(value: Any) -> Any:
    return ",".join(str(part) for part in value) if isinstance(value, list | tuple) else value
