"""Several processes write one cache: each its own shards, with the clips of the plan, killed or not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from thinkjepa.cache import (
    CacheError,
    ClipFeatures,
    ClipRow,
    FeatureCache,
    FeatureSet,
    OpenShard,
    WriteSession,
    verify,
)
from thinkjepa.cache.shards import write as open_shard_module
from thinkjepa.cache.shards.assignment import is_unfinished

ROWS, SHARDS, BATCH = 4, 6, 2

TreeDigest = Callable[[Path], Any]


@contextmanager
def process(work: Callable[[], None]) -> Iterator[int]:
    """A forked process that does some work, killed at the end of the block if it is still there."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    try:
        yield pid
    finally:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def wait_for(condition: Callable[[], object], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the wait timed out"
        time.sleep(0.01)


@pytest.fixture
def feature_set(thinker_set: Callable[..., FeatureSet]) -> FeatureSet:
    return thinker_set(rows=ROWS)


@pytest.fixture
def groups(feature_set: FeatureSet, make_features: Callable[..., ClipFeatures]) -> list[list[ClipFeatures]]:
    """The clips of each shard. The last one has a clip less."""
    groups = [
        [make_features(feature_set, f"v@{shard}{slot}", num_tokens=60 + 9 * slot) for slot in range(ROWS)]
        for shard in range(SHARDS)
    ]
    groups[-1].pop()
    return groups


def ids(groups: Sequence[Sequence[ClipFeatures]]) -> list[list[str]]:
    return [[item.clip_id for item in group] for group in groups]


def fill(shard: OpenShard, group: Sequence[ClipFeatures], *, die_after: int | None = None) -> None:
    """Append what is not there yet, batch by batch, as an extraction does."""
    done = {row.clip_id for row in shard.rows}
    left = [item for item in group if item.clip_id not in done]
    for number, start in enumerate(range(0, len(left), BATCH)):
        if number == die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        shard.append(left[start : start + BATCH])


def fill_alone(
    root: Path,
    feature_set: FeatureSet,
    groups: Sequence[Sequence[ClipFeatures]],
    clips: Sequence[ClipRow],
) -> None:
    """The cache that one process writes."""
    with WriteSession(root) as session:
        session.add_clips(clips)
        found = session.resolve(feature_set)
        for number, group in zip(session.assign(found, ids(groups)), groups, strict=True):
            with OpenShard(root, found, number) as shard:
                fill(shard, group)
        session.finish(found)


@pytest.mark.parametrize("num_writers", [2, 4])
def test_writers_at_once_one_of_them_killed_end_with_the_bytes_of_one_writer(
    tmp_path: Path,
    feature_set: FeatureSet,
    groups: list[list[ClipFeatures]],
    make_clip: Callable[..., ClipRow],
    num_writers: int,
    tree_digest: TreeDigest,
) -> None:
    clips = [make_clip(name) for group in ids(groups) for name in group]
    fill_alone(tmp_path / "alone", feature_set, groups, clips)
    root = tmp_path / "many"

    def work(numbers: Sequence[int], token: str, *, die: bool) -> None:
        for position, number in enumerate(numbers):
            with OpenShard(root, feature_set, number, token=token) as shard:
                fill(shard, groups[number], die_after=1 if die and position == 0 else None)

    with pytest.raises(RuntimeError, match="stopped"), WriteSession(root) as session:
        session.add_clips(clips)
        numbers = session.assign(session.resolve(feature_set), ids(groups))
        pids = []
        for writer in range(num_writers):
            pid = os.fork()
            if pid == 0:
                work(numbers[writer::num_writers], session.token, die=writer == 0)
                os._exit(0)
            pids.append(pid)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        assert statuses == [-signal.SIGKILL, *[0] * (num_writers - 1)]
        raise RuntimeError("stopped")
    assert is_unfinished(root, feature_set.name)
    assert verify(root, full=True, advance=lambda count: None) == []

    with WriteSession(root) as session:
        left = session.assigned(feature_set)
        assert set(left) == set(numbers[::num_writers]), "only the killed writer's shards are left"
        assert session.pending(feature_set, 0, ids(groups)[0]) == set(ids(groups)[0][BATCH:])
        assert session.pending(feature_set, 1, ids(groups)[1]) == set(), "sealed"
        for number in left:
            with OpenShard(root, feature_set, number) as shard:
                fill(shard, groups[number])
        session.finish(feature_set)
    assert tree_digest(root) == tree_digest(tmp_path / "alone")
    assert set(FeatureCache.open(root).index(feature_set.name)) == {
        name for group in ids(groups) for name in group
    }


def test_two_processes_never_write_the_same_shard(
    tmp_path: Path,
    feature_set: FeatureSet,
    groups: list[list[ClipFeatures]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(open_shard_module, "PATIENCE_S", 0.2)
    with WriteSession(tmp_path) as session:
        (number,) = session.assign(session.resolve(feature_set), ids(groups[:1]))
        begun = tmp_path / "begun"

        def work() -> None:
            with OpenShard(tmp_path, feature_set, number) as shard:
                shard.append(groups[0][:1])
                begun.touch()
                time.sleep(60)

        with process(work) as pid:
            wait_for(begun.exists)
            with pytest.raises(CacheError, match="still being written by another process"):
                OpenShard(tmp_path, feature_set, number)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            with OpenShard(tmp_path, feature_set, number) as shard:
                assert [row.clip_id for row in shard.rows] == ["v@00"]
        begun.unlink()


def test_a_writer_that_outlives_its_session_writes_nothing_more(
    tmp_path: Path, feature_set: FeatureSet, groups: list[list[ClipFeatures]]
) -> None:
    with pytest.raises(RuntimeError), WriteSession(tmp_path) as session:
        (number,) = session.assign(session.resolve(feature_set), ids(groups[:1]))
        zombie = OpenShard(tmp_path, feature_set, number, token=session.token)
        zombie.append(groups[0][:1])
        raise RuntimeError("the session is gone, its writer is not")
    with pytest.raises(CacheError, match="no longer holds"):
        zombie.append(groups[0][1:2])
    with WriteSession(tmp_path) as later:
        with pytest.raises(CacheError, match="no longer holds"):
            zombie.append(groups[0][1:2])
        with pytest.raises(CacheError, match="no longer holds"):
            zombie.seal()
        zombie.close()
        assert later.pending(feature_set, number, ["v@00", "v@01"]) == {"v@01"}
        with pytest.raises(CacheError, match="no longer holds"):
            OpenShard(tmp_path, feature_set, number, token=session.token)


def test_the_next_one_learns_who_writes_the_cache_and_may_wait(tmp_path: Path) -> None:
    entered = tmp_path / "entered"

    def work() -> None:
        with WriteSession(tmp_path / "cache"):
            entered.touch()
            time.sleep(1)

    with process(work) as pid:
        wait_for(entered.exists)
        with pytest.raises(CacheError, match=rf"being written by process {pid} of .*--wait"):
            WriteSession(tmp_path / "cache").__enter__()
        notes: list[str] = []
        with WriteSession(tmp_path / "cache", on_wait=notes.append):
            pass
        assert len(notes) == 1
        assert f"process {pid}" in notes[0]


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    entered = tmp_path / "entered"

    def work() -> None:
        with WriteSession(tmp_path / "cache"):
            entered.touch()
            time.sleep(60)

    with process(work) as pid:
        wait_for(entered.exists)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with WriteSession(tmp_path / "cache") as session:
            assert session.token


def test_what_an_earlier_version_left_open_is_named(tmp_path: Path, feature_set: FeatureSet) -> None:
    with WriteSession(tmp_path) as session:
        session.resolve(feature_set)
    left = tmp_path / feature_set.name / "journal.jsonl"
    left.parent.mkdir()
    left.touch()
    with pytest.raises(CacheError, match=r"journal\.jsonl.*earlier version.*remove the file"):
        WriteSession(tmp_path).__enter__()
    left.unlink()
    with WriteSession(tmp_path):
        pass
