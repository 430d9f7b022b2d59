"""One thread for whatever is computed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Equal bits are promised for equal thread counts; and tests share the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def whole_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """All counts that a head adds to its ridge: on clips so few, validation would leave nothing of it."""
    monkeypatch.setattr("thinkjepa.stages.train.model.head.SHARES", (1.0,))
