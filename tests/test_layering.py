"""Allowed imports, read from the source: pipeline → stages → cache, and heavy libraries in one place."""

import ast
import itertools
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("cache", "stages", "pipeline")  # lowest first
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
ALL_CODE = [*SOURCES, *sorted((ROOT / "benchmarks").rglob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]

# Library: the files that may import it.
CONFINED = {
    "av": (
        "stages/data/decoding/exact_frames.py",
        "pipeline/sample/videos.py",
        "pipeline/picture/playback.py",
    ),
    "transformers": ("stages/extract/*", "pipeline/sample/models.py"),
    "vllm": ("stages/extract/*",),
}
# Stages hand over through the cache and know nothing of each other.
STRANGERS = [("stages/extract", "thinkjepa.stages.train"), ("stages/train", "thinkjepa.stages.extract")]
PICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(path: Path) -> Iterator[str]:
    package = ".".join(("thinkjepa", *path.relative_to(ROOT).parent.parts))
    return imports_in(path.read_text(encoding="utf-8"), package=package)


def imports_in(source: str, *, package: str) -> Iterator[str]:
    """Every module that code of this package imports, also within functions: absolute dotted names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def importers_of(module: str) -> set[str]:
    """The files that import a module or anything below it."""
    return {
        name_of(path)
        for path in SOURCES
        if any(name == module or name.startswith(f"{module}.") for name in imports_of(path))
    }


def calls_in(path: Path) -> Iterator[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


@pytest.mark.parametrize(
    "line",
    [
        "import thinkjepa.stages.train.loop",
        "from thinkjepa.stages.train import loop",
        "from thinkjepa.stages.train.loop import step",
        "from ..train import loop",
        "def late():\n    from ..train.loop import step",
    ],
)
def test_every_way_of_importing_is_seen(line):
    found = set(imports_in(line, package="thinkjepa.stages.extract"))
    assert "thinkjepa.stages.train.loop" in found


def test_the_sources_are_found():
    assert {name_of(path).split("/")[0] for path in SOURCES} == set(LAYERS)


@pytest.mark.parametrize(("lower", "upper"), list(itertools.combinations(LAYERS, 2)))
def test_lower_layers_never_import_upper_ones(lower, upper):
    importers = importers_of(f"thinkjepa.{upper}")
    assert {name for name in importers if name.startswith(f"{lower}/")} == set()


@pytest.mark.parametrize(("folder", "stranger"), STRANGERS)
def test_extract_and_train_never_import_each_other(folder, stranger):
    assert {name for name in importers_of(stranger) if name.startswith(f"{folder}/")} == set()


@pytest.mark.parametrize("layer", LAYERS)
def test_top_level_folders_are_imported_by_their_installed_names_only(layer):
    assert importers_of(layer) == set()


@pytest.mark.parametrize("library", sorted(CONFINED))
def test_model_libraries_stay_in_their_backends(library):
    allowed = CONFINED[library]
    importers = importers_of(library)
    outside = {name for name in importers if not any(fnmatch(name, pattern) for pattern in allowed)}
    assert outside == set()


def test_nothing_pickles():
    offenders = {
        name_of(path)
        for path in SOURCES
        if PICKLERS & {name.split(".")[0] for name in imports_of(path)}
        or any(may_unpickle(call) for call in calls_in(path))
    }
    assert offenders == set()


def may_unpickle(call: ast.Call) -> bool:
    if ast.unparse(call.func) in {"torch.save", "torch.load", "pd.read_pickle", "pandas.read_pickle"}:
        return True
    return any(word.arg == "allow_pickle" and not is_false(word.value) for word in call.keywords)


def is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def test_no_model_brings_its_own_code():
    """`trust_remote_code` is False wherever it is named at all, and named wherever there is a choice.

    Where it is not named, transformers asks on the terminal, and runs the code after a `y`.
    """
    offenders = {
        name_of(path)
        for path in ALL_CODE
        for call in calls_in(path)
        for word in call.keywords
        if word.arg == "trust_remote_code" and not is_false(word.value)
    }
    silent = {
        name_of(path)
        for path in SOURCES
        for call in calls_in(path)
        if re.fullmatch(r"Auto\w+\.from_(pretrained|config)", ast.unparse(call.func))
        and "trust_remote_code" not in {word.arg for word in call.keywords}
    }
    assert offenders == silent == set()
