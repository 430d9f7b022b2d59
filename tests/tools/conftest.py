"""Fixtures of tests that draw pictures of the simulated hand."""

import importlib.util

import pytest
from hands.generate import RenderError, check_renderable


@pytest.fixture(scope="session")
def gl() -> None:
    """Skips where nothing can be rendered."""
    if importlib.util.find_spec("mujoco") is None or importlib.util.find_spec("gymnasium_robotics") is None:
        pytest.skip("rendering needs the extra `sample`")
    try:
        check_renderable(size_px=64)
    except RenderError as error:
        pytest.skip(str(error))
