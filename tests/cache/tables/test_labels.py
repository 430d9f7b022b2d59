"""Labels come back as they were stored, the newest of a video first, and damage is found."""

import copy
from pathlib import Path

import numpy as np
import pytest

from thinkjepa.cache import CacheError, FeatureCache, LabelTable, VideoLabels, WriteSession
from thinkjepa.cache.tables.labels import FILE_BYTES, write_labels


def labels_of(video: str, *, frames: int = 5, camera: bool = True, label_digest: str = "a") -> VideoLabels:
    rng = np.random.default_rng(sum(video.encode()) + frames)
    return VideoLabels(
        video_digest=video * 8,
        video=f"{video}.mp4",
        source="test",
        label_digest=label_digest,
        reference_frame="world",
        joint_names=("rightHand", "rightThumbTip"),
        positions_m=rng.normal(size=(frames, 2, 3)).astype(np.float32),
        confidences=rng.random((frames, 2)).astype(np.float32),
        camera_poses=rng.normal(size=(frames, 4, 4)) if camera else None,
        intrinsics=np.diag([100.0, 100.0, 1.0]) if camera else None,
        description=f"what {video} shows",
    )


def assert_same(found: VideoLabels | None, stored: VideoLabels) -> None:
    assert found is not None
    for name in ("positions_m", "confidences", "camera_poses", "intrinsics"):
        np.testing.assert_array_equal(getattr(found, name), getattr(stored, name))
    assert (found.video, found.description, found.joint_names) == (
        stored.video,
        stored.description,
        stored.joint_names,
    )


def test_labels_come_back_as_they_were_stored(tmp_path: Path) -> None:
    stored = [labels_of("a"), labels_of("b", camera=False), labels_of("c", frames=0)]
    with WriteSession(tmp_path) as session:
        assert session.add_labels(stored) == 3
    table = FeatureCache.open(tmp_path).labels
    assert len(table) == 3
    for item in stored:
        assert_same(table.find(item.video_digest), item)
    assert table.find("unknown") is None
    assert [item.video for item in table] == ["a.mp4", "b.mp4", "c.mp4"]


def test_only_new_or_changed_labels_are_written_and_the_newest_holds(tmp_path: Path) -> None:
    with WriteSession(tmp_path) as session:
        session.add_labels([labels_of("a"), labels_of("b")])
        assert session.add_labels([labels_of("a"), labels_of("b")]) == 0
        changed = labels_of("a", frames=7, label_digest="changed")
        assert session.add_labels([changed, labels_of("b")]) == 1
    table = LabelTable(tmp_path)
    assert_same(table.find(changed.video_digest), changed)
    assert len(table) == 2


def test_large_labels_are_cut_into_several_files(tmp_path: Path) -> None:
    frames = FILE_BYTES // (labels_of("a", frames=1).nbytes - labels_of("a", frames=0).nbytes) // 2 + 1
    stored = [labels_of(name, frames=frames) for name in "abc"]
    assert write_labels(tmp_path, stored) == 3
    assert len(list((tmp_path / "labels").iterdir())) == 2
    for item in stored:
        assert_same(LabelTable(tmp_path).find(item.video_digest), item)


def test_a_flipped_bit_is_found_and_names_the_video(tmp_path: Path) -> None:
    item = labels_of("a")
    write_labels(tmp_path, [item])
    path = tmp_path / "labels" / "000000.arrow"
    raw = bytearray(path.read_bytes())
    raw[raw.index(item.positions_m.tobytes()) + 3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CacheError, match=r"a\.mp4.*damaged"):
        LabelTable(tmp_path).find(item.video_digest)


def test_a_truncated_file_is_one_clear_error(tmp_path: Path) -> None:
    write_labels(tmp_path, [labels_of("a")])
    path = tmp_path / "labels" / "000000.arrow"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CacheError, match=r"000000\.arrow.*import again"):
        LabelTable(tmp_path).find("a" * 8)


def test_a_copy_of_an_opened_cache_maps_its_labels_anew(tmp_path: Path) -> None:
    with WriteSession(tmp_path) as session:
        session.add_labels([labels_of("a")])
    cache = FeatureCache.open(tmp_path)
    assert len(cache.labels) == 1
    sent = copy.copy(cache)  # what a worker process is given
    assert "labels" not in vars(sent)
    assert_same(sent.labels.find("a" * 8), labels_of("a"))


def test_arrays_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="confidences is"):
        VideoLabels(
            "test",
            "world",
            ("j",),
            np.zeros((3, 1, 3), np.float32),
            np.zeros((2, 1), np.float32),
        )
