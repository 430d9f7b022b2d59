"""A full or read-only disk, a limit on open files: one clear line, and what was committed is continued."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from thinkjepa.cache import CacheError, ClipFeatures, FeatureCache, FeatureSet, WriteSession, done_clip_ids

TreeDigest = Callable[[Path], dict[str, str]]


@pytest.fixture
def feature_set(thinker_set: Callable[..., FeatureSet]) -> FeatureSet:
    return thinker_set(rows=3)


@pytest.fixture
def batches(feature_set: FeatureSet, make_features: Callable[..., ClipFeatures]) -> list[list[ClipFeatures]]:
    return [[make_features(feature_set, f"v@{2 * n + m}", num_tokens=250) for m in (0, 1)] for n in range(12)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def write(root: Path, feature_set: FeatureSet, batches: Sequence[Sequence[ClipFeatures]]) -> None:
    with WriteSession(root) as session, session.writer(session.resolve(feature_set)) as writer:
        done = done_clip_ids(writer)
        for batch in batches:
            if not {item.clip_id for item in batch} <= done:
                writer.append(batch)


def error_with_few_files(spare: int, work: Callable[[], None]) -> str:
    """The CacheError of some work in a process that can open `spare` more files, empty if the work succeeds.

    zarr leaves coroutines where it cannot open a file. They end with the process.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            taken = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            free = [number for number in range(soft) if number not in taken]
            resource.setrlimit(resource.RLIMIT_NOFILE, (free[spare], hard))
            work()
        except CacheError as error:
            os.write(writing, str(error).encode())
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        message = pipe.read().decode()
    os.waitpid(child, 0)
    return message


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_space(
    tmp_path: Path,
    disk: Path,
    feature_set: FeatureSet,
    batches: list[list[ClipFeatures]],
    tree_digest: TreeDigest,
) -> None:
    write(tmp_path / "whole", feature_set, batches)
    root = disk / "cache"
    with pytest.raises(CacheError, match=r"cannot \w+ '.*': the disk is full: free space and run") as caught:
        write(root, feature_set, batches)
    assert "\n" not in str(caught.value)
    begun = set(FeatureCache.open(root).index(feature_set.name))
    assert 0 < len(begun) < 24
    remount(disk, "size=16m")
    write(root, feature_set, batches)
    assert tree_digest(root) == tree_digest(tmp_path / "whole")


@pytest.mark.parametrize("written", [0, 2])
def test_a_read_only_disk_is_one_line_for_a_writer_and_nothing_to_a_reader(
    disk: Path, feature_set: FeatureSet, batches: list[list[ClipFeatures]], written: int
) -> None:
    root = disk / "cache"
    if written:
        write(root, feature_set, batches[:written])
    remount(disk, "ro")
    with pytest.raises(CacheError, match="the file system is read-only: choose another folder"):
        write(root, feature_set, batches)
    if written:
        assert len(FeatureCache.open(root).index(feature_set.name)) == 2 * written


def test_too_few_open_files_are_one_line_and_nothing_is_lost(
    tmp_path: Path, feature_set: FeatureSet, batches: list[list[ClipFeatures]], tree_digest: TreeDigest
) -> None:
    write(tmp_path / "whole", feature_set, batches)
    root = tmp_path / "cut"
    messages = [
        error_with_few_files(spare, lambda: write(root, feature_set, batches))
        for spare in range(1, 16)  # another call fails each time
    ]
    failures = [message for message in messages if message]
    assert len(failures) >= 4  # with five it goes through: zarr's metadata is made in memory
    assert all("too many open files: raise the limit with `ulimit -n`" in failure for failure in failures)
    write(root, feature_set, batches)
    assert tree_digest(root) == tree_digest(tmp_path / "whole")
