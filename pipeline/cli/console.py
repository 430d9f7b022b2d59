"""Command lines of one look: apps, exit statuses, errors in one line, results as JSON or text."""

from __future__ import annotations

import errno
import json as json_format
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.prompt import Confirm
from rich.status import Status
from rich.text import Text
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import Abort, TyperException

from thinkjepa.cache import ThinkJepaError
from thinkjepa.cache.text import one_line, printable, without_passwords
from thinkjepa.pipeline.cli.help import HelpCommand, HelpGroup


def counted(number: int, thing: str) -> str:
    """`1 video`, `1,200 videos`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def human_bytes(count: float) -> str:
    """Decimal units, as disks are sold: 16900000 is `16.9 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_hours(hours: float) -> str:
    """`12 s`, `5 min`, `3.2 h` or `4.1 days`."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


class SafeConsole(Console):
    """A console that prints no control characters and no passwords of what others have named."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(without_passwords(printable(text)), **options)


SHOWN = 200
"""Characters of a path that an error quotes."""

EXIT_DONE = 0

EXIT_WRONG_USE = 2
"""The command could not be carried out as given: one line on standard error says why."""

EXIT_FAILURES = 3
"""More videos failed than --max-failures accepts."""

EXIT_INTERRUPTED = 130

EXIT_BROKEN_PIPE = 141
"""The status that a shell reports for SIGPIPE; EXIT_INTERRUPTED is the one for SIGINT."""

errors = SafeConsole(stderr=True, highlight=False)
"""Progress and messages go to standard error, so that standard output stays clean for --json."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


class App(typer.Typer):
    """A command line whose commands show our help page."""

    def command(  # type: ignore[override]  # the other options are typer's own, passed on
        self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **options: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return super().command(name, cls=cls or HelpCommand, **options)


def new_app(help_text: str) -> App:
    """An app of several commands, with plain tracebacks."""
    app = App(pretty_exceptions_enable=False, no_args_is_help=True, cls=HelpGroup)
    app.callback(help=help_text)(_keep_command_names)
    return app


def new_single_app() -> App:
    """An app that is its one command, as `thinkjepa-train`, with plain tracebacks."""
    return App(pretty_exceptions_enable=False)


def _keep_command_names() -> None:
    """Typer drops the name of an app's only command unless the app has a callback."""


def built_command(app: typer.Typer) -> TyperCommand | TyperGroup:
    """The command line of an app, with --version, which its subcommands take too."""
    command = typer.main.get_command(app)
    assert isinstance(command, TyperCommand | TyperGroup)
    version_app = typer.Typer(add_completion=False)
    version_app.command()(_version_only)
    option = typer.main.get_command(version_app).params[0]
    for item in (command, *(command.commands.values() if isinstance(command, TyperGroup) else ())):
        item.params.append(option)
    return command


def _version_only(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            expose_value=False,
            callback=lambda given: _print_versions() if given else None,
            help="Print the versions of thinkjepa, torch, transformers and Python.",
        ),
    ] = False,
) -> None:
    """Carries the option that every command line has."""


def _print_versions() -> None:
    named = [f"{name} {_version(name)}" for name in ("thinkjepa", "torch", "transformers")]
    print_text(", ".join([*named, f"Python {platform.python_version()}"]))
    raise typer.Exit


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def run_app(app: typer.Typer) -> NoReturn:
    """Run a command line; user errors end in one line on standard error and status 2."""
    try:
        status = built_command(app).main(standalone_mode=False)
    except TyperException as error:
        _fail(_explained(error))
    except ThinkJepaError as error:
        _fail(str(error))
    except (KeyboardInterrupt, Abort):
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.exit(EXIT_BROKEN_PIPE)
    except (OSError, RuntimeError) as error:
        if not (line := _of_this_machine(error)):
            raise
        _fail(line)
    if status == EXIT_INTERRUPTED:  # typer itself makes this of Ctrl-C
        errors.print("interrupted: run the same command again to continue")
    sys.exit(status if isinstance(status, int) else EXIT_DONE)


def _of_this_machine(error: OSError | RuntimeError) -> str:
    """The line for a path or a limit of this machine that no stage has explained, empty for a defect."""
    from thinkjepa.cache.disk.files import REMEDIES

    if isinstance(error, RuntimeError):
        return REMEDIES[errno.EAGAIN] if "can't start new thread" in str(error) else ""
    if not error.filename and error.errno not in REMEDIES:
        return ""
    what = f"{str(error.filename)[:SHOWN]!r}: " if error.filename else ""
    return f"{what}{REMEDIES.get(error.errno or 0, error.strerror or str(error))}"


def _explained(error: TyperException) -> str:
    """The error of a command line, with the nearest right name and the help that lists all of them."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(error.format_message())
        sys.exit(EXIT_WRONG_USE)
    message = error.format_message().replace("Value error, ", "").removesuffix(".")
    if nearest := getattr(error, "possibilities", None):
        message = f"{error.message}. Did you mean {' or '.join(nearest)}?"
    return f"{message} (see {context.command_path} --help)" if context else message


def loading() -> Status:
    """A status line on a terminal, to be shown during imports that take seconds."""
    return errors.status("loading torch and what the command needs ...")


def confirmed(question: str) -> bool:
    """Ask a question on standard error. The answer is no where nobody can give one."""
    try:
        return Confirm.ask(printable(question), console=errors, default=False)
    except (EOFError, KeyboardInterrupt):
        errors.print()
        return False


def print_result(json: bool, value: Any, text: str) -> None:
    """Print `value` as JSON for scripts, or `text` for people."""
    if json:
        text = json_format.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    print_text(text)


def print_text(text: str) -> None:
    """Write text and a line break to standard output, where all results go: no control characters."""
    sys.stdout.write(printable(text) + "\n")


def _fail(message: str) -> NoReturn:
    line = without_passwords(printable(one_line(message)))
    sys.stderr.write(f"error: {line}\n")
    sys.exit(EXIT_WRONG_USE)
