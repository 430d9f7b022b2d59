"""Labels come back as they were stored, the newest of a video first, and damage is found."""

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from thinkjepa.cache import CacheError, FeatureCache, LabelTable, VideoLabels, WriteSession, verify
from thinkjepa.cache.tables.labels import FILE_BYTES, LABELS_SCHEMA, write_labels


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


def test_a_flipped_bit_anywhere_is_found_before_any_label_is_read(tmp_path: Path) -> None:
    """Texts, names of joints and Arrow's own headers have no checksum but the file's."""
    with WriteSession(tmp_path) as session:
        session.add_labels([labels_of("a"), labels_of("b")])
    path = tmp_path / "labels" / "000000.arrow"
    raw = path.read_bytes()
    assert verify(tmp_path, full=True, advance=lambda count: None) == []
    texts = [raw.index(text) for text in (b"what a shows", b"rightThumbTip", b"a.mp4", b"world")]
    chance = random.Random(0)
    for place in (*texts, *(chance.randrange(len(raw)) for _ in range(60))):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        table = FeatureCache.open(tmp_path).labels
        with pytest.raises(CacheError, match=r"labels/000000\.arrow' is damaged"):
            table.find("a" * 8)
        with pytest.raises(CacheError, match=r"labels/000000\.arrow' is damaged"):
            table.label_digest("b" * 8)
        problems = verify(tmp_path, full=True, advance=lambda count: None)
        assert ["labels/000000.arrow" in item.reason for item in problems] == [True], f"byte {place}"
    path.write_bytes(raw)
    assert verify(tmp_path, full=True, advance=lambda count: None) == []


def test_rows_that_no_version_writes_are_refused(tmp_path: Path) -> None:
    """A file from elsewhere, with checksums of its own."""
    write_labels(tmp_path, [labels_of("a"), labels_of("b")])
    path = tmp_path / "labels" / "000000.arrow"
    with pa.ipc.open_file(path) as file:
        rows = [file.get_batch(number).to_pylist()[0] for number in range(file.num_record_batches)]
    hostile: list[dict[str, Any]] = [
        {"num_frames": 2**40},
        {"num_frames": -1},
        {"joint_names": None},
        {"joint_names": ["rightHand"]},
        {"positions_m": None},
        {"reference_frame": "moon"},
        {"intrinsics": [1.0]},
    ]
    for change in hostile:
        batches = [
            pa.RecordBatch.from_pylist([row], schema=LABELS_SCHEMA) for row in [rows[0] | change, rows[1]]
        ]
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, LABELS_SCHEMA) as writer:
            for batch in batches:
                writer.write_batch(batch)
        with pytest.raises(CacheError, match=r"labels of video .* are damaged"):
            LabelTable(tmp_path).find("a" * 8)
        assert_same(LabelTable(tmp_path).find("b" * 8), labels_of("b"))


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
