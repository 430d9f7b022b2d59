"""The wheel holds all the code, and type checkers find it where it is installed."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import thinkjepa

ROOT = Path(__file__).parents[1]
LAYERS = ("cache", "stages", "pipeline")
ROOT_PACKAGE = "package"  # the folder that is installed as `thinkjepa` itself
BUILD_FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree: building in place leaves a folder whose stale files enter the next wheel."""
    copy = tmp_path_factory.mktemp("source")
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, copy)
    for folder in (ROOT_PACKAGE, *LAYERS):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    # A package that no list names: packages are found, not enumerated.
    (copy / "stages" / "brand_new").mkdir()
    (copy / "stages" / "brand_new" / "__init__.py").write_text("")
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built by the installed setuptools, without network."""
    out = tmp_path_factory.mktemp("dist")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        check=True,
        capture_output=True,
        text=True,
        timeout=200,
    )
    (out / "build.log").write_text(built.stdout + built.stderr)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel_names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_holds_every_module_under_its_installed_name(source, wheel_names):
    modules = {
        f"thinkjepa/{path.relative_to(source).as_posix()}"
        for layer in LAYERS
        for path in (source / layer).rglob("*.py")
    }
    modules.add("thinkjepa/__init__.py")
    assert "thinkjepa/stages/brand_new/__init__.py" in modules
    assert modules - wheel_names == set()


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for layer in LAYERS for path in (ROOT / layer).rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_a_project_is_made_from_the_wheel_alone(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "from thinkjepa.pipeline.cli import init; print(init.__file__, flush=True); init.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "project"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert (tmp_path / "project" / "dvc.yaml").read_text() == (ROOT / "dvc.yaml").read_text()


def test_building_the_wheel_warns_of_no_folder_that_would_be_left_out(wheel):
    log = (wheel.parent / "build.log").read_text()
    assert "Successfully built" in log
    assert "absent from the `packages` configuration" not in log


def test_wheel_says_that_it_is_typed(wheel_names):
    assert "thinkjepa/py.typed" in wheel_names


def folder_of(package: str) -> Path:
    """The folder of the checkout that is installed under a name: what setup.py maps."""
    _, *below = package.split(".")
    return ROOT.joinpath(*below) if below else ROOT / ROOT_PACKAGE


def test_wheel_holds_the_package_data_that_is_declared(wheel_names):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    missing = {
        path.relative_to(ROOT).as_posix()
        for package, patterns in declared.items()
        for pattern in patterns
        for path in folder_of(package).glob(pattern)
        if path.is_file()
        and f"{package.replace('.', '/')}/{path.relative_to(folder_of(package)).as_posix()}"
        not in wheel_names
    }
    assert missing == set()


def test_wheel_holds_nothing_but_the_packages_and_their_metadata(wheel_names):
    packages = tuple(f"thinkjepa/{layer}/" for layer in LAYERS)
    outside = {name for name in wheel_names if not name.startswith(packages) and ".dist-info/" not in name}
    assert outside == {"thinkjepa/__init__.py", "thinkjepa/py.typed"}


@pytest.mark.parametrize(
    ("name", "source"), [("__init__.py", "package/__init__.py"), *((layer, layer) for layer in LAYERS)]
)
def test_type_checkers_see_the_sources(name, source):
    link = ROOT / "typings" / "thinkjepa" / name
    assert link.resolve() == ROOT / source


def test_the_package_knows_its_version():
    assert thinkjepa.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_every_command_is_installed_and_points_at_a_module():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts
    for target in scripts.values():
        module, function = target.split(":")
        assert module.startswith("thinkjepa.")
        assert ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py").is_file(), target
        assert function == "main"


@pytest.fixture(scope="module")
def locked() -> dict[str, list[Requirement]]:
    """Pins of requirements.lock, by name: more than one line where systems need different versions."""
    pinned: dict[str, list[Requirement]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith(("#", " ")):
            requirement = Requirement(line.removesuffix("\\"))
            pinned.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return pinned


def version_of(requirement: Requirement) -> str:
    (pin,) = requirement.specifier
    assert pin.operator == "==", requirement
    return pin.version


def test_the_lock_satisfies_what_is_declared(locked):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert len(declared) > 30
    for wanted in map(Requirement, declared):
        pins = locked[canonicalize_name(wanted.name)]
        assert all(wanted.specifier.contains(version_of(pin)) for pin in pins), (wanted, pins)


def test_the_lock_agrees_with_the_constraints(locked):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = {
        name for name, pins in locked.items() if any(not pin.marker or pin.marker.evaluate() for pin in pins)
    }
    assert {canonicalize_name(pin.name) for pin in pinned} >= here - {"pip", "setuptools"}
    differing = {
        str(other)
        for pin in pinned
        for other in locked.get(canonicalize_name(pin.name), ())
        if version_of(other) != version_of(pin)
    }
    assert differing == set()


def test_the_lock_has_a_hash_for_every_file_and_no_address():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert "index-url" not in text
    pins = [block for block in re.split(r"^(?=\w)", text, flags=re.MULTILINE) if not block.startswith("#")]
    assert [pin.splitlines()[0] for pin in pins if "--hash=sha256:" not in pin] == []


def test_make_wheel_writes_the_file_that_the_readme_installs(wheel):
    """From a copy without `build`, which would put stale files into it."""
    recipe = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "wheel", "VENV=env"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert recipe.rstrip().endswith(
        "rm -rf build\nenv/bin/python -m build --wheel --no-isolation\nrm -rf build"
    )
    assert f"`pip install {wheel.name}`" in (ROOT / "README.md").read_text()
