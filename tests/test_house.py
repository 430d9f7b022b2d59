"""The size and shape of the code, counted: what a reader has to go through stays small."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = ("cache", "stages", "pipeline")
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
CODE = [
    *SOURCES,
    *TESTS,
    *sorted((ROOT / "tools").rglob("*.py")),
    *sorted((ROOT / "benchmarks").rglob("*.py")),
]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in CODE}

# Each number is what is reached: lower it with the code. The aims: 130 files of 19,000 lines, four lines of
# tests for five of source, no long function, no question as a docstring, no import that closes a circle.
SOURCE_FILES = 256
SOURCE_LINES = 40_500
FOLDER_MODULES = 14
FILE_LINES = 400
FUNCTION_LINES = 60
MODULE_LINES = 40
EQUAL_LINES = 12
TEST_RATIO = 0.75

SHORT_MODULES = {"stages/errors.py", "stages/json_files.py", "stages/progress.py"}
"""Contracts that many modules import."""

LATE_IMPORTS = {"thinkjepa.pipeline.cli.options": {"thinkjepa.pipeline.project.params"}}
"""Imports inside a function that close a circle."""

DIALECT = {"hopeless", "scene", "scenes", "thought", "thoughts", "undecided"}
"""Words of a private language, which no identifier in the sources holds."""

RENAMED = {"Fitting", "LatentView", "Share"}
"""Classes that have plainer names now."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_the_sources_are_few_and_short() -> None:
    assert len(SOURCES) <= SOURCE_FILES
    assert sum(map(num_lines, SOURCES)) <= SOURCE_LINES


def test_no_folder_holds_too_many_modules() -> None:
    modules: defaultdict[str, int] = defaultdict(int)
    for path in CODE:
        modules[name_of(path.parent)] += path.name != "__init__.py"
    assert {folder: count for folder, count in modules.items() if count > FOLDER_MODULES} == {}


def test_no_file_is_long() -> None:
    assert {name_of(path): num_lines(path) for path in CODE if num_lines(path) > FILE_LINES} == {}


def test_no_function_is_long() -> None:
    functions = {
        f"{name_of(path)}:{node.name}": node.end_lineno - node.lineno + 1
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }
    assert {name for name, lines in functions.items() if lines > FUNCTION_LINES} == set()


def test_no_module_is_a_fragment() -> None:
    modules = {name_of(path): num_lines(path) for path in SOURCES if path.name != "__init__.py"}
    assert {name for name, lines in modules.items() if lines < MODULE_LINES} - SHORT_MODULES == set()


def test_there_are_enough_tests() -> None:
    assert sum(map(num_lines, TESTS)) >= TEST_RATIO * sum(map(num_lines, SOURCES))


def test_modules_import_each_other_in_no_circle() -> None:
    """Imports inside functions count too."""
    modules = {module_name(path): path for path in SOURCES}
    imports = {
        name: set(imported(path, modules)) - {name} - LATE_IMPORTS.get(name, set())
        for name, path in modules.items()
    }
    while free := [name for name, needed in imports.items() if not needed]:
        for name in free:
            del imports[name]
        for needed in imports.values():
            needed.difference_update(free)
    assert sorted(imports) == []


def module_name(path: Path) -> str:
    return ".".join(("thinkjepa", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def imported(path: Path, modules: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            parts = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            names = [part if part in modules else str(node.module) for part in parts.values()]
        else:
            continue
        yield from (name for name in names if name in modules)


def test_no_two_places_share_many_lines() -> None:
    """Lines are compared stripped, without imports, docstrings and blank lines."""
    places: defaultdict[tuple[str, ...], list[tuple[Path, int]]] = defaultdict(list)
    for path in CODE:
        lines = code_lines(path)
        for start in range(len(lines) - EQUAL_LINES + 1):
            window = lines[start : start + EQUAL_LINES]
            places[tuple(text for _, text in window)].append((path, window[0][0]))
    twice = [found for found in places.values() if len(found) > 1]
    told = {", ".join(f"{name_of(path)}:{line}" for path, line in found) for found in twice}
    assert told == set()


def code_lines(path: Path) -> list[tuple[int, str]]:
    """Numbers and stripped texts of a file's lines, without its imports, docstrings and blank lines."""
    left_out: set[int] = set()
    for node in ast.walk(TREES[path]):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.Import | ast.ImportFrom) or docstring:
            left_out.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    return [(number, text.strip()) for number, text in lines if text.strip() and number not in left_out]


def test_docstrings_begin_with_what_a_thing_is_or_does() -> None:
    questions = re.compile(r"(What|Where|Which|When|Who|Why|How|Whether|Of)\b")
    found = {
        f"{name_of(path)}:{getattr(node, 'name', 'module')}"
        for path in CODE
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and questions.match(ast.get_docstring(node) or "")
    }
    assert found == set()


def test_identifiers_are_words_that_everybody_knows() -> None:
    found = {
        f"{name_of(path)}: {name}"
        for path in SOURCES
        for name in identifiers(TREES[path])
        if name in RENAMED or DIALECT & {word.lower() for word in re.findall(r"[A-Z]?[a-z]+", name)}
    }
    assert found == set()


def identifiers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.arg(arg=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name


def test_every_path_that_the_documentation_names_is_there() -> None:
    top = "|".join((*LAYERS, "tests", "tools", "benchmarks", "recipes", "docs"))
    path = re.compile(rf"`((?:{top})/[\w./-]*)`")
    pages = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
    named = {(page.name, name) for page in pages for name in path.findall(page.read_text(encoding="utf-8"))}
    assert {(page, name) for page, name in named if not (ROOT / name).exists()} == set()
