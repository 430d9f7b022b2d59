"""The --help page: options in groups by topic, rare ones last, two columns that fit a terminal, examples."""

from __future__ import annotations

import re
import shutil
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

ARGUMENTS = "Arguments"

OPTIONS = "Options"

ADVANCED = "Advanced: "
"""Begins the titles of panels with rare options, which come after all others."""

OF_THE_SHELL = "Help and shell"

SHELL_OPTIONS = ("help", "version", "install_completion", "show_completion")

DEFAULTS = "Defaults are in brackets."

WIDEST = 120

FEWEST_COLUMNS, NAME_COLUMNS = 12, 26
"""A longer name takes a line of its own, and its text follows below."""

VALUES = {
    "fps": "FPS",
    "s": "SECONDS",
    "time": "SECONDS",
    "timeout": "SECONDS",
    "mb": "MB",
    "device": "DEVICE",
    "params": "YAML",
}
"""Placeholder of a flag's value, by the last word of its name."""

Parameter = TyperOption | TyperArgument


class HelpCommand(TyperCommand):
    """A command that shows this help page. Its epilog is a list of examples, a line each."""

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        formatter.write(help_page(self, ctx))


class HelpGroup(TyperGroup):
    """A group of commands that shows this help page."""

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        formatter.write(help_page(self, ctx))


def help_page(command: TyperCommand | TyperGroup, context: typer.Context) -> str:
    """Usage, text, panels of options and examples, for the terminal's width."""
    width = min(WIDEST, shutil.get_terminal_size().columns)
    console = Console(width=width, highlight=False, soft_wrap=False)
    with console.capture() as captured:
        console.print(Text(command.get_usage(context).strip(), style="bold"))
        for paragraph in _paragraphs(command.help or ""):
            console.print()
            console.print(Padding(Text(paragraph), (0, 0, 0, 2)))
        panels = list(_panels(command, context))
        if any("[" in str(_text(item, context)) for _, own in panels for item in own):
            console.print(f"\n  {DEFAULTS}")
        if isinstance(command, TyperGroup):
            commands = [command.commands[name] for name in command.list_commands(context)]
            rows = [(item.name or "", Text(_paragraphs(item.help or "")[0])) for item in commands]
            _print_panel(console, "Commands", rows)
        for title, own in panels:
            _print_panel(console, title, [(option_name(item), _text(item, context)) for item in own])
        if command.epilog:
            console.print(Text("\nExamples", style="bold"))
            for line in command.epilog.splitlines():
                console.print(Text(_broken(line, width)), soft_wrap=True)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def examples(*lines: str) -> str:
    """An epilog: command lines as a reader would type them."""
    return "\n".join(lines)


def _broken(line: str, width: int) -> str:
    """A command line, continued by backslashes before a flag or its comment where it is too long."""
    first, *parts = re.split(r" (?=-|# )", line)
    rows = [f"  {first}"]
    for part in parts:
        if len(rows[-1]) + len(part) + len("  \\") <= width:
            rows[-1] += f" {part}"
        else:
            rows.append(f"      {part}")
    return " \\\n".join(row.rstrip() for row in rows)


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()] or [""]


def _panels(
    command: TyperCommand | TyperGroup, context: typer.Context
) -> Iterator[tuple[str, list[Parameter]]]:
    """Panels with their options: arguments, common options in the order of the command, rare ones, help."""
    panels: dict[str, list[Parameter]] = {ARGUMENTS: [], OPTIONS: []}
    for item in command.get_params(context):
        if isinstance(item, TyperOption | TyperArgument) and not item.hidden:
            panels.setdefault(_panel(item), []).append(item)
    last = [OF_THE_SHELL]
    rare = [title for title in panels if title.startswith(ADVANCED)]
    common = [title for title in panels if title not in (*rare, *last)]
    for title in (*common, *rare, *last):
        if panels.get(title):
            yield title, panels[title]


def _panel(item: Parameter) -> str:
    if item.name in SHELL_OPTIONS:
        return OF_THE_SHELL
    return item.rich_help_panel or (ARGUMENTS if isinstance(item, TyperArgument) else OPTIONS)


def _print_panel(console: Console, title: str, rows: Sequence[tuple[str, Text]]) -> None:
    """Two columns. The first is as wide as its names; one longer than NAME_COLUMNS has a line of its own."""
    console.print(Text(f"\n{title}", style="bold"))
    left = max((len(name) for name, _ in rows if len(name) <= NAME_COLUMNS), default=FEWEST_COLUMNS)
    for name, text in rows:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(width=left)
        table.add_column(ratio=1)
        if len(name) > left:
            console.print(Text(f"  {name}", style="cyan"))
        table.add_row(Text(name if len(name) <= left else "", style="cyan"), text)
        console.print(Padding(table, (0, 0, 0, 2)))


def option_name(item: Parameter) -> str:
    """`-o, --out PNG`, `--[no-]wait`, `--full/--quick`, or an argument's name."""
    if isinstance(item, TyperArgument):
        return item.metavar or item.name.upper()
    names = sorted(item.opts, key=len)
    if item.is_flag:
        long, off = names[-1], [*item.secondary_opts, ""][0]
        if off == f"--no-{long.removeprefix('--')}":
            names[-1] = f"--[no-]{long.removeprefix('--')}"
        elif off:
            names[-1] = f"{long}/{off}"
        return ", ".join(names)
    return f"{', '.join(names)} {_value(item)}"


def _value(item: TyperOption) -> str:
    described = item.type_descriptor
    if item.metavar:
        return item.metavar
    if described.is_choice:
        return "|".join(map(str, described.choices or ()))
    kind: Any = described.annotation
    repeated = typing.get_origin(kind) is list
    kind = typing.get_args(kind)[0] if repeated else kind
    plain = VALUES.get(item.name.split("_")[-1]) or {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")
    return f"{plain} ..." if repeated else plain


def _text(item: Parameter, context: typer.Context) -> Text:
    """The help line with its default, or that it is required."""
    text = Text(item.help or "")
    if item.required:
        return text.append(" [required]", style="dim")
    default = item.get_default(context, call=False)
    if default is None or default is False or default in ("", [], ()) or not item.show_default:
        return text
    shown = ", ".join(map(str, default)) if isinstance(default, list | tuple) else default
    return text.append(f" [{shown}]", style="dim")
