"""The one way to declare settings: a field's type, default, help and bounds.

A group of settings is a frozen pydantic dataclass under `Settings`. Each field is a flag with a line of help
and a key of params.yaml, and pydantic checks its value wherever an instance is made. An error names the flag,
the value and what is allowed, in one line. Records and copies are made as of any dataclass, by
`dataclasses.asdict` and `dataclasses.replace`.
"""

from __future__ import annotations

from dataclasses import field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from thinkjepa.stages.errors import StageError

Group = TypeVar("Group")

Part = TypeVar("Part")

BOUNDS = {"gt": "a number above {}", "ge": "{} or more", "lt": "below {}", "le": "at most {}"}
"""Pydantic's names of bounds, and what messages say of them."""

OUT_OF_BOUNDS = ("greater_than", "less_than", "multiple_of", "finite_number")
"""How pydantic's types of errors begin that `allowed` has the remedy for."""


class SettingsError(StageError):
    """A setting has an unknown name or a value that is not allowed."""


def setting(default: Any, text: str, *, rare: bool = False, allowed: str = "", **bounds: float) -> Any:
    """A field: its default, the sentence that is its help, and whether few need it.

    `bounds` are those of BOUNDS, or others of pydantic's. Then `allowed` says in words what they allow.
    """
    if bounds and not allowed:
        allowed = ", ".join(words.format(bounds[name]) for name, words in BOUNDS.items() if name in bounds)
    return field(default=default, metadata={"help": text, "rare": rare, "allowed": allowed, **bounds})


DEFAULT_OR_MORE = "1 or more, or 0 for the default"
"""What settings allow that are whole numbers, 0 among them."""


def flag_name(name: str) -> str:
    """The flag of a setting or parameter: `--batch-size` for `batch_size`."""
    return "--" + name.replace("_", "-")


@dataclass(
    frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)
)  # help is shown without a check
class Settings:
    """Base of all groups. Making an instance raises SettingsError for a value that is not allowed."""

    PANEL: ClassVar[str]
    """Panel of the group's flags in `--help`."""

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_in_one_line(cls, values: Any, check: ModelWrapValidatorHandler[Group]) -> Group:
        try:
            return check(values)
        except ValidationError as error:
            allowed = {item.name: item.metadata["allowed"] for item in fields(cls)}
            raise SettingsError(_first_problem(error, allowed)) from error


def expanded(name: str) -> Path:
    """The path of a setting, `~` and `~user` replaced by a home folder. An unknown user's stays as it is."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def part_of(settings: Settings, kind: type[Part], /, **others: Any) -> Part:
    """A `kind` of the settings of the same names; `others` are its fields that settings name otherwise."""
    names = [item.name for item in fields(kind) if item.name not in others]  # type: ignore[arg-type]
    return kind(**{name: getattr(settings, name) for name in names}, **others)


def _first_problem(error: ValidationError, allowed: dict[str, str]) -> str:
    first, *others = error.errors(include_url=False)
    if not first["loc"]:  # of several settings together: the message names them
        return first["msg"].removeprefix("Value error, ")
    name = str(first["loc"][0])
    same = [item for item in others if item["loc"][:1] == first["loc"][:1]]  # of a union
    if first["type"].startswith(OUT_OF_BOUNDS) and (allowed[name] or not same):
        reason = f"give {allowed[name] or 'a finite number'}"
    else:
        reason = " or ".join(item["msg"] for item in (first, *same))
    return f"{flag_name(name)} {first['input']!r}: {reason}"
