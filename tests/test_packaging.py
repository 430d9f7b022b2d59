"""The wheel holds all the code, and type checkers find it where it is installed."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("cache", "stages", "pipeline")
BUILD_FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree: building in place leaves a folder whose stale files enter the next wheel."""
    copy = tmp_path_factory.mktemp("source")
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, copy)
    for layer in LAYERS:
        shutil.copytree(ROOT / layer, copy / layer, ignore=shutil.ignore_patterns("__pycache__"))
    # A package that no list names: packages are found, not enumerated.
    (copy / "stages" / "brand_new").mkdir()
    (copy / "stages" / "brand_new" / "__init__.py").write_text("")
    return copy


@pytest.fixture(scope="module")
def wheel_names(source: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in a wheel built by the installed setuptools, without network."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        check=True,
        capture_output=True,
        timeout=200,
    )
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_holds_every_module_under_its_installed_name(source, wheel_names):
    modules = {
        f"thinkjepa/{path.relative_to(source).as_posix()}"
        for layer in LAYERS
        for path in (source / layer).rglob("*.py")
    }
    assert "thinkjepa/stages/brand_new/__init__.py" in modules
    assert modules - wheel_names == set()


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for layer in LAYERS for path in (ROOT / layer).rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_wheel_says_that_it_is_typed(wheel_names):
    assert {f"thinkjepa/{layer}/py.typed" for layer in LAYERS} <= wheel_names


def test_wheel_holds_the_package_data_that_is_declared(wheel_names):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    missing = {
        path.relative_to(ROOT).as_posix()
        for package, patterns in declared.items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")[1:]).glob(pattern)
        if path.is_file() and f"thinkjepa/{path.relative_to(ROOT).as_posix()}" not in wheel_names
    }
    assert missing == set()


def test_wheel_holds_nothing_but_the_packages_and_their_metadata(wheel_names):
    outside = {
        name for name in wheel_names if not name.startswith(tuple(f"thinkjepa/{layer}/" for layer in LAYERS))
    }
    assert all(".dist-info/" in name for name in outside), outside


@pytest.mark.parametrize("layer", LAYERS)
def test_type_checkers_see_the_sources(layer):
    link = ROOT / "typings" / "thinkjepa" / layer
    assert link.resolve() == ROOT / layer


def test_every_command_is_installed_and_points_at_a_module():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts
    for target in scripts.values():
        module, function = target.split(":")
        assert module.startswith("thinkjepa.")
        assert ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py").is_file(), target
        assert function == "main"
