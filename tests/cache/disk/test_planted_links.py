"""Another user who may write into a folder puts links there, under names that we will write to."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from thinkjepa.cache import CacheError
from thinkjepa.cache.disk.files import BackgroundSync, replace_file, staging_name
from thinkjepa.cache.disk.layout import lock_file
from thinkjepa.cache.disk.lock import WriteLock
from thinkjepa.cache.shards.format import ShardWriter
from thinkjepa.cache.shards.identity import ShardIdentity


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file elsewhere, which nothing here may write to."""
    path = tmp_path / "elsewhere" / "victim"
    path.parent.mkdir()
    path.write_text("mine")
    return path


def write_shard(path: Path) -> None:
    sync = BackgroundSync()
    try:
        writer = ShardWriter(path, num_chunks=1, sync=sync)
        writer.append_all([0], [np.arange(8, dtype=np.uint8)])
        writer.begin_flush()
        writer.end_flush()
        writer.begin_seal(ShardIdentity("0123", "values", 0, ("v@1",)))
        writer.end_seal()
    finally:
        sync.close()


def test_a_link_under_the_temporary_name_of_this_process_is_not_met(tmp_path: Path, victim: Path) -> None:
    (tmp_path / f".file.{os.getpid()}.tmp").symlink_to(victim)
    replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert not (tmp_path / "file").is_symlink()
    assert victim.read_text() == "mine"


def test_temporary_names_are_never_equal(tmp_path: Path) -> None:
    assert len({staging_name(tmp_path / "file") for _ in range(100)}) == 100


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_under_a_guessed_name_is_not_followed(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda count: "0" * 2 * count)
    if not exists:
        victim.unlink()
    staging_name(tmp_path / "file").symlink_to(victim)
    with pytest.raises(CacheError, match="File exists"):
        replace_file(tmp_path / "file", b"new")
    assert victim.read_text() == "mine" if exists else not victim.exists()


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_shard, "0.partial"),
        (lambda path: WriteLock(path.parent, remedy="wait", file=path.name).__enter__(), None),
    ],
    ids=["shard", "lock"],
)
def test_a_link_in_the_place_of_a_file_of_known_name_is_told(
    tmp_path: Path, victim: Path, write: Callable[[Path], None], name: str | None
) -> None:
    link = tmp_path / name if name else lock_file(tmp_path, "0")
    link.symlink_to(victim)
    with pytest.raises(CacheError, match=r"a link is in its place, and is not followed: remove the link"):
        write(tmp_path / "0")
    assert victim.read_text() == "mine"
    link.unlink()
    write_shard(tmp_path / "0")
    assert (tmp_path / "0").stat().st_size > 8
