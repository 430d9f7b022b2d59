"""JSON of files that others may have written or edited: one strict reader for all of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, NoReturn

MAX_DEPTH = 64
"""Containers within each other. Our own files have seven, and each costs readers a frame of the stack."""


def parse_json(content: bytes) -> Any:
    """The value of UTF-8 JSON: finite numbers, texts that can be written again, and no deep nesting.

    Raises ValueError, in words, for anything else.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from None
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if text.count("[") + text.count("{") > MAX_DEPTH:
            _check_depth(value)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if "\\u" in text:
        _check_texts(value)
    return value


_TOO_DEEP = f"it is nested more than {MAX_DEPTH} deep"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is no JSON number")


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"it holds {digits[:40]}, which is too large for a number")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for container in level for item in _contained(container)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _contained(container: Any) -> Iterable[Any]:
    """The containers in a value."""
    items: Iterable[Any] = ()
    if isinstance(container, dict):
        items = container.values()
    elif isinstance(container, list):
        items = container
    return (item for item in items if isinstance(item, dict | list))


def _check_texts(value: Any) -> None:
    """Refuse half of a surrogate pair, which `\\ud800` stands for: it cannot be written or printed."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair") from None
