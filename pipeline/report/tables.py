"""The one writer of Markdown tables, and what tables have columns for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from thinkjepa.stages.evaluate.metrics import Metric


class TableWriter(Protocol):
    """Writes a table in one format; arguments as of `markdown_table`."""

    def __call__(
        self, header: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int = 1, note: str = ""
    ) -> str: ...


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int = 1, note: str = ""
) -> str:
    """A table whose columns are aligned in plain text, too, the first `left` ones to the left.

    A note is a paragraph above it.

    Cells are written as text, without escapes.
    Empty without rows. Raises ValueError where a row has more or fewer cells than the header.
    """
    if not rows:
        return ""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * width if index < left else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    lines = [
        [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in (cells[0], rule, *cells[1:])
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{note}\n\n{table}" if note else table


def titled(title: str, table: str, lines: Sequence[str] = ()) -> list[str]:
    """A table under its title, with lines below it; nothing where the table is empty."""
    below = ["\n".join(f"- {line}" for line in lines)] if lines else []
    return [f"## {title}", table, *below] if table else []


def available(metrics: Iterable[Metric], found: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """Those of `metrics` that any of some figures by metric has."""
    return [metric for metric in metrics if any(metric.name in figures for figures in found)]
