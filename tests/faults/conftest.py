"""Caches in every state that a command may start from, and the commands that write one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from thinkjepa.cache import (
    CacheError,
    ClipFeatures,
    ClipRow,
    Failure,
    FeatureCache,
    FeatureSet,
    OpenShard,
    VideoLabels,
    WriteSession,
    merge,
    plan_clip_removal,
    plan_set_removal,
    remove,
    repair,
    verify,
)

FIRST = tuple(f"{video:016x}@{split}" for video in range(3) for split in (4, 9))
"""Clips of the filled cache: six of three videos, in two shards of a set."""

LATER = tuple(f"{video:016x}@{split}" for video in range(3, 5) for split in (4, 9))
"""Clips that a command adds."""

BROKEN = LATER[2]
"""A clip that no model takes."""

BATCH = 2

Command = Callable[[Path], None]


@dataclass(frozen=True)
class Makers:
    """Builders of sets, features and rows, which the commands share."""

    sets: tuple[FeatureSet, ...]
    features: Callable[..., ClipFeatures]
    clip: Callable[..., ClipRow]
    log: Path
    """Names the features of every batch that was committed."""

    def reported(self) -> set[str]:
        return set(self.log.read_text().splitlines()) if self.log.exists() else set()

    def rows(self, clip_ids: Sequence[str]) -> list[ClipRow]:
        return [self.clip(clip_id, video=f"v{clip_id[15]}.mp4") for clip_id in clip_ids]

    def extract(
        self, root: Path, clip_ids: Sequence[str], *, kinds: Sequence[str] = ("thinker", "encoder")
    ) -> None:
        """Write what is missing, as an extraction does: shard after shard, batch by batch."""
        with WriteSession(root) as session:
            session.add_clips(self.rows(clip_ids))
            session.add_labels(map(_labels, sorted({clip_id.split("@")[0] for clip_id in clip_ids})))
            for wanted in self.sets:
                if wanted.kind in kinds:
                    self._fill(session, session.resolve(wanted), clip_ids)
                    session.remember({"settings": {"clips": len(clip_ids)}})
            session.record_failures([Failure("broken.mp4", "open", "no video")], videos=["broken.mp4"])

    def _fill(self, session: WriteSession, item: FeatureSet, clip_ids: Sequence[str]) -> None:
        units = session.assigned(item)
        known = {*session.done_clip_ids(item), *session.failed_clips(item), *sum(units.values(), ())}
        missing = [clip_id for clip_id in clip_ids if clip_id not in known]
        rows = item.rows_per_shard
        groups = [missing[start : start + rows] for start in range(0, len(missing), rows)]
        for number, group in zip(session.assign(item, groups), groups, strict=True):
            units[number] = tuple(group)
        for number, clips in units.items():
            with OpenShard(session.root, item, number, token=session.token) as shard:
                for start in range(0, len(clips), BATCH):
                    batch = [
                        clip_id for clip_id in clips[start : start + BATCH] if clip_id not in shard.processed
                    ]
                    good = [self.features(item, clip_id) for clip_id in batch if clip_id != BROKEN]
                    lost = [_failure(clip_id) for clip_id in batch if clip_id == BROKEN]
                    assert not shard.append(good, lost)
                    with self.log.open("a") as log:
                        log.writelines(f"{item.name} {features.clip_id}\n" for features in good)
        session.finish(item)


@pytest.fixture
def makers(
    thinker_set: Callable[..., FeatureSet],
    encoder_set: Callable[..., FeatureSet],
    make_features: Callable[..., ClipFeatures],
    make_clip: Callable[..., ClipRow],
    tmp_path: Path,
) -> Makers:
    return Makers((thinker_set(), encoder_set()), make_features, make_clip, tmp_path / "reported")


def remove_named(root: Path, *, selector: str = "", clip_ids: Sequence[str] = ()) -> None:
    """Remove a set or clips. What an earlier call of it has removed is no error."""
    with suppress(CacheError):
        cache = FeatureCache.open(root)
        planned = plan_set_removal(cache, selector) if selector else plan_clip_removal(cache, clip_ids)
        with WriteSession(root) as session:
            remove(session, planned, labels=True)
        return
    with WriteSession(root):  # tidies, as the command does
        pass


def repaired(root: Path) -> None:
    """Check a cache, and drop the clips that are damaged."""
    problems = verify(root, full=True, advance=lambda count: None)
    with WriteSession(root):
        repair(root, problems, full=True)


def damage(root: Path) -> None:
    """Flip bits of one clip in each set."""
    cache = FeatureCache.open(root)
    for item in cache.feature_sets.values():
        array = next(iter(item.arrays))
        shard, _ = cache.shard_of(item.name, array, FIRST[1])
        content = bytearray(shard.path.read_bytes())
        content[len(content) // 8] ^= 255
        shard.path.write_bytes(content)


def _failure(clip_id: str) -> Failure:
    return Failure("", "thinker", "broken", clip_id=clip_id)


def _labels(video: str) -> VideoLabels:
    digest = video.ljust(64, "0")
    return VideoLabels(
        video=f"v{video[15]}.mp4",
        video_digest=digest,
        label_digest=f"labels of {video}",
        source="test",
        reference_frame="world",
        joint_names=("wrist",),
        positions_m=np.full((5, 1, 3), int(video, 16), dtype=np.float32),
        confidences=np.ones((5, 1), dtype=np.float32),
    )


@pytest.fixture
def commands(makers: Makers, tmp_path: Path) -> dict[str, Command]:
    """Every command that writes a cache, by name."""

    def merged(root: Path) -> None:
        other = tmp_path / "other"
        if not other.exists():
            makers.extract(other, LATER)
        merge([other, tmp_path / "filled"], root, advance=lambda count: None)

    return {
        "make": lambda root: makers.extract(root, LATER),
        "extract": lambda root: makers.extract(root, [*FIRST, *LATER]),
        "rm set": lambda root: remove_named(root, selector="thinker"),
        "rm clips": lambda root: remove_named(root, clip_ids=FIRST[:5]),
        "merge": merged,
        "repair": repaired,
    }


@pytest.fixture
def filled(makers: Makers, tmp_path: Path) -> Path:
    """A cache of six clips; tests must not change it."""
    makers.extract(tmp_path / "filled", FIRST)
    return tmp_path / "filled"


def faults(root: Path) -> list[str]:
    """All that a full check finds."""
    return [item.reason for item in verify(root, full=True, advance=lambda count: None)]


def copied(source: Path, target: Path) -> Path:
    """A copy of a folder, nothing where there is none."""
    shutil.rmtree(target, ignore_errors=True)
    if source.exists():
        shutil.copytree(source, target)
    return target
