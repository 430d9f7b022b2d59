"""Lazy names of packages are imported on first use."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import thinkjepa.cache

PACKAGES = ("thinkjepa.cache",)


@pytest.mark.parametrize("name", PACKAGES)
def test_every_exported_name_is_there_and_no_module_hides_it(name: str) -> None:
    code = (
        f"import importlib, pkgutil, types; package = importlib.import_module({name!r});"
        "[importlib.import_module(f'{package.__name__}.{found.name}') for found in"
        " pkgutil.iter_modules(package.__path__)];"
        "print([name for name in package.__all__ if isinstance(getattr(package, name), types.ModuleType)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("name", PACKAGES)
def test_a_name_that_no_module_has_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        importlib.import_module(name).nothing  # noqa: B018


def test_a_found_name_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(vars(thinkjepa.cache), "SetWriter", raising=False)
    found = thinkjepa.cache.SetWriter
    assert vars(thinkjepa.cache)["SetWriter"] is found
