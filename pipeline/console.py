"""What all command lines share: exit statuses, one-line errors, and output for people or for scripts."""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.prompt import Confirm
from typer.exceptions import Abort, TyperException

from thinkjepa.cache import ThinkJepaError

EXIT_DONE = 0
EXIT_WRONG_USE = 2
"""The command could not be carried out as given: one line on standard error says why."""
EXIT_FAILURES = 3
"""More videos failed than --max-failures accepts."""
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
"""What a shell reports of SIGPIPE and SIGINT."""

errors = Console(stderr=True, highlight=False)
"""Progress and messages go to standard error, so that standard output stays clean for --json."""


def new_app(help_text: str) -> typer.Typer:
    """An app of several commands, with plain tracebacks."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True)
    app.callback(help=help_text)(_keep_command_names)
    return app


def new_single_app() -> typer.Typer:
    """An app that is its one command, as `thinkjepa-train`, with plain tracebacks."""
    return typer.Typer(pretty_exceptions_enable=False, add_completion=False)


def _keep_command_names() -> None:
    """Typer drops the name of an app's only command unless the app has a callback."""


def run_app(app: typer.Typer) -> NoReturn:
    """Run a command line; user errors end in one line on standard error and status 2."""
    try:
        status = app(standalone_mode=False)
    except TyperException as error:
        _fail(error.format_message())
    except ThinkJepaError as error:
        _fail(str(error))
    except (KeyboardInterrupt, Abort):
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.exit(EXIT_BROKEN_PIPE)
    if status == EXIT_INTERRUPTED:  # typer itself makes this of Ctrl-C
        errors.print("interrupted: run the same command again to continue")
    sys.exit(status if isinstance(status, int) else EXIT_DONE)


def confirmed(question: str) -> bool:
    """The answer to a question on standard error; no where there is nobody to answer."""
    try:
        return Confirm.ask(question, console=errors, default=False)
    except (EOFError, KeyboardInterrupt):
        errors.print()
        return False


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def print_text(text: str) -> None:
    sys.stdout.write(text + "\n")


def _fail(message: str) -> NoReturn:
    line = " ".join(message.split())
    sys.stderr.write(f"error: {line}\n")
    sys.exit(EXIT_WRONG_USE)
