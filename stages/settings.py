"""Checks that the groups of training settings share: what a value may be, said in one line."""

from collections.abc import Iterable

from thinkjepa.stages.errors import StageError


def check_choice(settings: object, name: str, allowed: Iterable[str]) -> None:
    value = getattr(settings, name)
    if value not in (choices := tuple(allowed)):
        raise StageError(f"{name} is {value!r}, it must be one of {', '.join(choices)}")


def check_positive(settings: object, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) > 0:
            raise StageError(f"{name} is {getattr(settings, name)}, it must be above 0")


def check_not_negative(settings: object, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) >= 0:
            raise StageError(f"{name} is {getattr(settings, name)}, it must be 0 or above")


def check_share(settings: object, name: str) -> None:
    value = getattr(settings, name)
    if not 0 <= value < 1:
        raise StageError(f"{name} is {value}, it must be 0 or above and below 1")
