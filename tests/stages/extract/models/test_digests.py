"""Digests of weights: read once, never taken from whoever made the model, and never of other weights."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from thinkjepa.cache import file_digest, fingerprint
from thinkjepa.pipeline.report import doctor
from thinkjepa.stages.data.videos import CLOCK_GRAIN_NS, FileState
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.models import digests
from thinkjepa.stages.extract.models.digests import is_identified, rehash, sampled_state, weights_digest
from thinkjepa.stages.extract.models.weights import ModelFolder

NAMES = ("config.json", "a.safetensors", "b.safetensors")
SIZE = 1 << 20


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A memory of the test's own, under a clock by which files are old enough to be remembered."""
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 2 * CLOCK_GRAIN_NS)
    monkeypatch.setenv("THINKJEPA_MEMORY", str(tmp_path / "memory"))
    return tmp_path / "memory"


@pytest.fixture
def model(tmp_path: Path, memory: Path) -> ModelFolder:
    folder = tmp_path / "model"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(np.random.default_rng(number).bytes(SIZE))
    return ModelFolder("m", folder, revision="local")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read from end to end."""
    names: list[str] = []
    monkeypatch.setattr(digests, "file_digest", lambda path: names.append(path.name) or file_digest(path))
    return names


@pytest.fixture
def without_change_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system whose change times tell nothing. Nobody can set one."""

    def state(path: Path) -> FileState:
        status = path.stat()
        return [status.st_size, status.st_mtime_ns, 0, status.st_ino]

    monkeypatch.setattr(digests, "file_state", state)


def true_digest(model: ModelFolder) -> str:
    return fingerprint([[name, file_digest(model.path / name)] for name in NAMES])


def overwrite(path: Path, content: bytes, *, at: int = 0) -> None:
    """Write into a file so that size, modification time and inode stay."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size,
        before.st_mtime_ns,
        before.st_ino,
    )


def test_weights_are_read_once_and_the_memory_is_the_users(
    model: ModelFolder, memory: Path, read: list[str]
) -> None:
    assert not is_identified(model)
    assert weights_digest(model) == true_digest(model)
    assert read == list(NAMES)
    assert is_identified(model)
    link = model.path.with_name("link")
    link.symlink_to(model.path)
    for same in (model, ModelFolder("other name", link, revision="main")):
        assert weights_digest(same) == true_digest(model)
    assert read == list(NAMES)
    assert sorted(path.name for path in model.path.iterdir()) == sorted(NAMES)
    (file,) = (memory / "weights").iterdir()
    assert file.parent.stat().st_mode & 0o077 == 0


def test_other_weights_of_the_same_size_and_time_are_other_weights(model: ModelFolder) -> None:
    before = weights_digest(model)
    overwrite(model.path / "b.safetensors", b"other")
    assert not is_identified(model)
    assert weights_digest(model) == true_digest(model) != before


@pytest.mark.usefixtures("without_change_time")
def test_blocks_from_all_over_a_file_tell_other_weights(model: ModelFolder) -> None:
    before = weights_digest(model)
    assert is_identified(model)
    overwrite(model.path / "a.safetensors", np.random.default_rng(9).bytes(SIZE))
    assert weights_digest(model) == true_digest(model) != before
    for at in (0, SIZE - 1):
        before = weights_digest(model)
        flipped = 255 - (model.path / "a.safetensors").read_bytes()[at]
        overwrite(model.path / "a.safetensors", bytes([flipped]), at=at)
        assert weights_digest(model) == true_digest(model) != before, "head and end are always read"


@pytest.mark.parametrize("size", [0, 1, digests.SAMPLE_BYTES, digests.SAMPLE_BYTES + 1])
def test_small_files_are_sampled_whole(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    states = set()
    for content in (bytes(size), bytes(max(0, size - 1)) + b"!" * min(1, size)):
        path.write_bytes(content)
        states.add(sampled_state(path)[-1])
    assert len(states) == min(2, size + 1)


def test_a_digest_that_comes_with_the_model_is_not_believed(model: ModelFolder, memory: Path) -> None:
    """As an archive would bring it: sizes and times are those of the files."""
    stats = [(name, (model.path / name).stat()) for name in NAMES]
    files = [[name, status.st_size, status.st_mtime_ns] for name, status in stats]
    forged = {"files": files, "digest": "0" * 64}
    (model.path / ".thinkjepa-digest.json").write_text(json.dumps(forged))
    assert not is_identified(model)
    assert weights_digest(model) == true_digest(model)


def test_the_memory_of_another_user_is_not_read(
    model: ModelFolder, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights_digest(model)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(StageError, match=r"is another user's: set THINKJEPA_MEMORY to a folder of your own"):
        weights_digest(model)


@pytest.mark.parametrize("content", [b"", b"{", b'{"/a": 5}'])
def test_a_damaged_memory_is_none_and_one_that_cannot_be_written_costs_time_only(
    model: ModelFolder, memory: Path, content: bytes
) -> None:
    weights_digest(model)
    (file,) = (memory / "weights").iterdir()
    file.write_bytes(content)
    assert weights_digest(model) == true_digest(model)
    file.unlink()
    file.parent.rmdir()
    (memory / "weights").write_text("in the way")
    assert weights_digest(model) == true_digest(model)
    assert not is_identified(model)


@pytest.mark.usefixtures("without_change_time")
def test_rehash_finds_what_nothing_else_tells_and_corrects_it(
    model: ModelFolder, tmp_path: Path, memory: Path
) -> None:
    before = weights_digest(model)
    assert [item.changed for item in rehash()] == [()]
    overwrite(model.path / "b.safetensors", b"!", at=digests.SAMPLE_BYTES + 1)
    assert weights_digest(model) == before != true_digest(model), "between the blocks"
    broken, fine = doctor.check_weights()
    assert (broken.state, fine.state) == ("broken", "ok")
    assert f"b.safetensors in {str(model.path)!r} changed and kept size and times" in broken.found
    assert fine.found == f"1 model remembered, 3.1 MB read again, in {str(memory)!r}"
    assert is_identified(model)
    assert weights_digest(model) == true_digest(model)
    assert [finding.state for finding in doctor.check_weights()] == ["ok"]
    model.path.rename(tmp_path / "elsewhere")
    assert list(rehash()) == []
    assert list((memory / "weights").iterdir()) == []
