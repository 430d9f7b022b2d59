"""The comparison of two commits sees every difference; the commands it runs are those of the checkout."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def same_bits() -> ModuleType:
    spec = importlib.util.spec_from_file_location("same_bits", ROOT / "tools" / "same_bits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["same_bits"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ({"loss": [0.1, 0.2]}, {"loss": [0.1, 0.2]}, ""),
        ({"loss": float("nan")}, {"loss": float("nan")}, ""),
        ({"loss": [0.1, 0.2]}, {"loss": [0.1, 0.2000001]}, ".loss[1] was 0.2, is 0.2000001"),
        ({"loss": [0.1]}, {"loss": [0.1, 0.2]}, ".loss has 1 and 2 items"),
        ({"a": 1}, {"a": 1, "b": 2}, ".b is only in the working tree"),
        ({"a": 1, "b": 2}, {"a": 1}, ".b is only in the commit"),
        ({"text": "ab"}, {"text": "ac"}, ".text was ab, is ac"),
    ],
)
def test_the_first_difference_is_named(same_bits: ModuleType, before: Any, after: Any, found: str) -> None:
    assert same_bits.difference(before, after) == found


def test_a_result_that_one_side_lacks_is_a_difference(same_bits: ModuleType) -> None:
    assert same_bits.compare({"a": 1, "b": 2}, {"b": 2}) == ["a: only the commit has it"]
    assert same_bits.compare({"b": 2}, {"b": 2}) == []


def test_only_time_is_left_out_of_json(same_bits: ModuleType) -> None:
    assert same_bits.stable({"seconds": 1.5, "runs": [{"ade_m": 0.1, "seconds": 2}]}) == {
        "runs": [{"ade_m": 0.1}]
    }


def test_a_checkout_runs_its_own_code(same_bits: ModuleType, tmp_path: Path) -> None:
    checkout = same_bits.make_checkout(ROOT, tmp_path / "work")
    assert checkout.imported_from() == ROOT
    assert "Usage: thinkjepa-cache" in checkout.run("thinkjepa-cache", "--help")
