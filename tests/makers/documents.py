"""Code blocks of the documentation: found in the Markdown, run, or held against the commands' own flags.

A fenced block of `sh` or `python` is run as it is. A comment before it changes that:

    <!-- needs: gpu -->           cannot run here, and why: every command line is parsed instead
    <!-- before: COMMAND -->      run first, unseen by the reader: the reader's own files, or fewer epochs

A block of `text` right behind shows what is printed: each of its lines has to be in the output, numbers and
hexadecimal names apart. Lines of indented blocks that call a thinkjepa command are parsed.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from itertools import zip_longest
from pathlib import Path

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

BLOCK = re.compile(
    r"(?P<comments>(?:^<!--.*?-->\n)*)^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
COMMENT = re.compile(r"<!-- (needs|before): (.*?) -->", re.DOTALL)
INDENTED_CALL = re.compile(r"^    (?:\w+\$ )?(?=thinkjepa-)", re.MULTILINE)
NUMBER = re.compile(r"\b[0-9a-f]{7,}\b|\d+(?:[.,]\d+)*")
RUNNABLE = ("sh", "python")


@dataclass(frozen=True, slots=True)
class Block:
    """One code block, or one indented command line. `needs` says why it cannot run, empty where it can."""

    page: str
    line: int
    language: str
    text: str
    needs: str = ""
    before: tuple[str, ...] = ()
    output: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path, *, root: Path) -> list[Block]:
    """The blocks of a page that can be run, in order."""
    page, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    blocks = []
    for match, following in zip_longest(found, found[1:]):
        if match["language"] not in RUNNABLE:
            continue
        shows = (
            following
            and following["language"] == "text"
            and not text[match.end() : following.start()].strip()
        )
        notes = [(kind, " ".join(note.split())) for kind, note in COMMENT.findall(match["comments"])]
        blocks.append(
            Block(
                page=page,
                line=text.count("\n", 0, match.start("language")) + 1,
                language=match["language"],
                text=match["text"],
                needs=", ".join(note for kind, note in notes if kind == "needs"),
                before=tuple(note for kind, note in notes if kind == "before"),
                output=following["text"] if following and shows else "",
            )
        )
    return blocks


def indented_calls(path: Path, *, root: Path) -> list[Block]:
    """Lines of a page's indented blocks that call a command of this package."""
    page, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
    outside = BLOCK.sub(lambda match: "\n" * match.group().count("\n"), text)
    calls = []
    for match in INDENTED_CALL.finditer(outside):
        line = outside[match.end() :].replace("\\\n", " ").split("\n", 1)[0]
        calls.append(Block(page, outside.count("\n", 0, match.start()) + 1, "sh", line, needs="a reader"))
    return calls


def run_block(block: Block, folder: Path, environment: Mapping[str, str]) -> tuple[str, Path]:
    """Run a block in `folder`; returns what it printed and the folder it ended in.

    Raises AssertionError with the output where it fails, or where what the page shows was not printed.
    """
    note, text = folder / ".where", block.text
    if block.language == "python":
        (folder / "block.py").write_text(text)
        text = f"{shlex.quote(sys.executable)} block.py"
    script = "\n".join([*block.before, text, f"pwd > {shlex.quote(str(note))}"])
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(
        command, cwd=folder, env=dict(environment), capture_output=True, text=True, check=False
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, f"{block} ended with status {done.returncode}:\n{block.text}\n{printed}"
    missing = set(_shapes(block.output)) - set(_shapes(printed))
    assert not missing, f"{block} shows what was not printed: {missing}\n{printed}"
    return printed, Path(note.read_text().strip())


def _shapes(text: str) -> Iterator[str]:
    """Lines without numbers, hexadecimal names and the width of columns; `...` stands for lines left out."""
    for line in text.splitlines():
        shape = " ".join(NUMBER.sub("#", line).split())
        if shape and shape != "...":
            yield shape


def command_lines(text: str) -> Iterator[Sequence[str]]:
    """The words of each command of a shell text; comments and joined lines are resolved."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.commenters, lexer.whitespace_split = "#", True
        words: list[str] = []
        for word in lexer:
            if word in ("&&", ";", "|", "||"):
                yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words


def check_call(words: Sequence[str]) -> None:
    """Hold a call of one of our commands against its own flags.

    `...` stands for words that are not shown: then nothing can be missing. Raises AssertionError.
    """
    command = programs()[words[0]]
    arguments = [word for word in words[1:] if word != "..."]
    if isinstance(command, TyperGroup):
        name = arguments.pop(0)
        assert name in command.commands, f"{words[0]} has no command {name!r}"
        command = command.commands[name]
    try:
        command.make_context(words[0], arguments)
    except TyperException as error:
        if type(error).__name__ != "MissingParameter" or "..." not in words:
            raise AssertionError(f"{' '.join(words)}: {error.format_message()}") from error


@cache
def programs() -> Mapping[str, typer.core.TyperCommand | TyperGroup]:
    """Our command lines by name."""
    return {
        script.name: typer.main.get_command(import_module(script.value.split(":")[0]).app)
        for script in entry_points(group="console_scripts")
        if script.name.startswith("thinkjepa-")
    }
