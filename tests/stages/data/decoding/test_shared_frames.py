"""Frames that two processes see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from thinkjepa.stages.data.decoding.client import SharedFrames

CHILD = (
    "import sys\nfrom thinkjepa.stages.data.decoding.client import SharedFrames\n"
    "room = SharedFrames(int(sys.argv[1])).room(2, (4, 6, 3))\n"
    "assert (room[0] == 7).all()\nroom[1] = 9\n"
)


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_one_process_writes_the_other_one_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shared = SharedFrames.create()
    room = shared.room(2, (4, 6, 3))
    room[0] = 7
    command = [sys.executable, "-c", CHILD, str(shared.file)]
    subprocess.run(command, pass_fds=[shared.file], check=True)
    assert (room[1] == 9).all()
    assert not list(tmp_path.iterdir()), "a file with a name would outlive a process that is killed"
    shared.close()
    assert (room[1] == 9).all()


def test_room_grows_and_is_shared_again() -> None:
    one = SharedFrames.create()
    other = SharedFrames(one.file)
    for count in (1, 5, 2, 300):
        one.room(count, (8, 8, 3))[:] = count % 256
        assert np.array_equal(other.room(count, (8, 8, 3)), np.full((count, 8, 8, 3), count % 256, np.uint8))
    one.close()
