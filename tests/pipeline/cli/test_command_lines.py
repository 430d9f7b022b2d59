"""All command lines: help that fits a terminal, examples that parse, versions, completion, wrong use."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from thinkjepa.pipeline.cli.console import built_command
from thinkjepa.pipeline.cli.help import help_page, option_name

PROGRAMS = sorted(
    (script.name, script.value.removesuffix(":main"))
    for script in entry_points(group="console_scripts")
    if script.name.startswith("thinkjepa-")
)


def program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [program(arguments[0]), *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def commands() -> Iterator[tuple[str, TyperCommand | TyperGroup, typer.Context]]:
    """Every command of every program, by the words that call it."""
    for name, module in PROGRAMS:
        whole = built_command(import_module(module).app)
        context = typer.Context(whole, info_name=name)
        yield name, whole, context
        if isinstance(whole, TyperGroup):
            for word, part in whole.commands.items():
                assert isinstance(part, TyperCommand)
                yield f"{name} {word}", part, typer.Context(part, info_name=word, parent=context)


COMMANDS = {words: (command, context) for words, command, context in commands()}
EXAMPLES = [
    (words, line)
    for words, (command, _) in COMMANDS.items()
    for line in (command.epilog or "").splitlines()
    if line.strip()
]


def test_all_programs_are_found() -> None:
    assert {"thinkjepa-cache", "thinkjepa-train", "thinkjepa-eval"} <= {name for name, _ in PROGRAMS}
    assert "thinkjepa-cache extract" in COMMANDS


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("words", COMMANDS)
def test_help_fits_the_terminal_and_names_every_option(
    words: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    command, context = COMMANDS[words]
    page = help_page(command, context)
    body, _, shown = page.partition("\nExamples\n")
    assert max(map(len, page.splitlines())) <= width
    for item in command.get_params(context):
        if isinstance(item, TyperOption) and not item.hidden:
            longest = max(item.opts, key=len).removeprefix("--")
            assert f"--{longest}" in body or f"--[no-]{longest}" in body
    whole = shown.replace(" \\\n", " ").splitlines()
    assert [line.split() for line in whole] == [line.split() for line in (command.epilog or "").splitlines()]
    assert not {"<bool>", "<str>"} & set(page.split())


def test_help_of_extraction_takes_about_two_screens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    page = help_page(*COMMANDS["thinkjepa-cache extract"])
    assert len(page.splitlines()) <= 120
    assert page.index("\nClips\n") < page.index("\nModels\n") < page.index("\nAdvanced: Models\n")


@pytest.mark.parametrize(
    "words", [words for words, (item, _) in COMMANDS.items() if not isinstance(item, TyperGroup)]
)
def test_every_command_has_an_example(words: str) -> None:
    if not words.startswith("thinkjepa-stage "):  # its steps are called by dvc.yaml
        assert words in {command for command, _ in EXAMPLES}


@pytest.mark.parametrize(("words", "line"), EXAMPLES)
def test_an_example_parses(words: str, line: str) -> None:
    arguments = shlex.split(line, comments=True)
    assert arguments[: len(words.split())] == words.split()
    command, context = COMMANDS[words]
    rest = arguments[len(words.split()) :]
    parsed = command.make_context(words.split()[-1], list(rest), parent=context.parent)
    assert [name for name, value in parsed.params.items() if value is not None]


def test_commands_with_settings_take_them_from_a_file_too() -> None:
    """Those of thinkjepa-stage read params.yaml in any case."""
    with_file = {words for words, (command, _) in COMMANDS.items() if "params" in names(command)}
    by_hand = {words for words in with_file if not words.startswith("thinkjepa-stage ")}
    extraction = {f"thinkjepa-cache {word}" for word in ("extract", "estimate", "serve-thinker")}
    assert by_hand == extraction | {"thinkjepa-train", "thinkjepa-eval", "thinkjepa-predict"}


def names(command: TyperCommand | TyperGroup) -> set[str]:
    return {item.name for item in command.params}


def test_the_same_flag_takes_the_same_everywhere() -> None:
    """By the help page: `--device DEVICE` here and `--device TEXT` there would be two things."""
    shared = ("device", "cache_dir", "json", "params", "decode_timeout", "videos")
    taken = {
        (item.name, option_name(item))
        for command, _ in COMMANDS.values()
        for item in command.params
        if isinstance(item, TyperOption) and item.name in shared
    }
    assert sorted(name for name, _ in taken) == sorted(shared)


@pytest.mark.parametrize("words", [*(name for name, _ in PROGRAMS), "thinkjepa-cache extract"])
def test_version_is_one_line_on_every_program(words: str) -> None:
    done = run(*words.split(), "--version")
    assert done.returncode == 0, done.stderr
    python = ".".join(map(str, sys.version_info[:3]))
    assert done.stdout == (
        f"thinkjepa {version('thinkjepa')}, torch {version('torch')}, "
        f"transformers {version('transformers')}, Python {python}\n"
    )


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_takes_version(words: str) -> None:
    assert "version" in names(COMMANDS[words][0])


def test_help_of_an_installed_command_comes_with_status_0() -> None:
    done = run("thinkjepa-cache", "extract", "--help", COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nAdvanced: vLLM\n" in done.stdout


def test_no_command_at_all_shows_the_commands() -> None:
    done = run("thinkjepa-cache")
    assert (done.returncode, done.stdout) == (2, "")
    assert "\nCommands\n  extract" in done.stderr
    assert "error" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("extrac", "--videos", "a"), "Did you mean 'extract'?"),
        (("extract", "--video", "a"), "Did you mean --videos or --version?"),
        (("extract", "--fps", "3"), "Did you mean --fp8 or --clips or --dense-fps"),
        (("extract", "--nothing-like-it"), "see thinkjepa-cache extract --help"),
        (("extract", "--preset", "duel"), "'duel' is not one of 'dual', 'release'"),
        (("extract", "--cache-dir", "c"), "'--videos': give it, or a file that names videos with --params"),
    ],
)
def test_a_mistyped_command_line_is_answered_by_the_nearest_right_one(
    arguments: tuple[str, ...], meant: str
) -> None:
    done = run("thinkjepa-cache", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert meant in done.stderr


def completed(words: str, index: int, directory: Path) -> list[str]:
    name = words.split()[0]
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    done = subprocess.run(
        [program(name)],
        capture_output=True,
        text=True,
        cwd=directory,
        env={**os.environ, variable: "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(index)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_shell_completes_commands_flags_and_choices(tmp_path: Path) -> None:
    assert completed("thinkjepa-cache ex", 1, tmp_path) == ["extract"]
    assert "--dense-fps" in completed("thinkjepa-cache extract --d", 2, tmp_path)
    assert completed("thinkjepa-cache extract --preset ", 3, tmp_path) == ["dual", "release"]


def test_the_shell_completes_sets_and_clips_of_the_cache_on_the_line(tmp_path: Path) -> None:
    record = json.dumps({"feature_sets": [{"name": "thinker-0123456789ab", "source": {"model": "tiny"}}]})
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "cache.json").write_text(record)
    train = "thinkjepa-train --cache-dir features --set "
    assert completed(f"{train}th", 4, tmp_path) == ["thinker-0123456789ab"]
    assert completed(f"{train}enc", 4, tmp_path) == []
    assert completed("thinkjepa-cache compare features thinker-0", 3, tmp_path) == ["thinker-0123456789ab"]
    assert completed("thinkjepa-cache compare nothing thinker-0", 3, tmp_path) == []


@pytest.mark.parametrize("module", [module for _, module in PROGRAMS])
def test_a_program_that_only_shows_help_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_completion_script_is_shown_for_the_shell() -> None:
    stays = "exit $?"  # bash has to be the program's parent, which is asked for the name of the shell
    bash = ["bash", "-c", f"{program('thinkjepa-train')} --show-completion bash; {stays}"]
    done = subprocess.run(bash, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "thinkjepa_train_completion" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("thinkjepa-cache", "extract", "--videos", "empty", "--cache-dir", "c"), "no videos under 'empty'"),
        (("thinkjepa-cache", "estimate", "--videos", "empty"), "no videos under 'empty'"),
        (
            ("thinkjepa-predict", "--run", "r", "--video", "v.mp4", "-o", "v.mp4", "--decode-timeout", "0"),
            "--decode-timeout 0.0: give seconds above 0",
        ),
        (("thinkjepa-predict", "--run", "r", "--video", "v.mp4", "-o", "v.gif"), "ends in .mp4 or .png"),
    ],
)
def test_what_is_wrong_at_first_sight_is_refused_before_torch_is_imported(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = subprocess.run(
        [program(arguments[0]), *arguments[1:]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr
