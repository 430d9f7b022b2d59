"""Label files of both formats: what is read, what is refused, and in which words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from thinkjepa.stages.data.joints import EGODEX_JOINTS
from thinkjepa.stages.data.labels.contract import LabelError
from thinkjepa.stages.data.labels.readers import LabelSource, find_labels
from thinkjepa.stages.data.trajectories import project, to_camera, to_world

WriteEgodex = Callable[..., Path]
HEADER = "frame,joint,x,y,z\n"


def csv_of(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "0.csv"
    path.write_text(text)
    return path


def set_at(name: str, place: tuple[Any, ...], value: float) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file[name][place] = value

    return change


def replace(name: str, values: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]
        file[name] = values

    return change


def test_all_joints_of_an_egodex_file_return_from_the_pixels(
    tmp_path: Path, write_egodex: WriteEgodex
) -> None:
    labels = LabelSource(write_egodex(tmp_path / "0.hdf5", num_frames=20, seed=3)).read()
    assert labels.joint_names == EGODEX_JOINTS
    assert (labels.source, labels.reference_frame) == ("egodex", "world")
    assert labels.positions_m.shape == (20, 68, 3)
    assert labels.camera_poses is not None
    assert labels.intrinsics is not None
    assert labels.confidences[:, EGODEX_JOINTS.index("leftHand")] == pytest.approx(0.95)
    for frame in (0, 19):
        pose = labels.camera_poses[frame]
        seen = to_camera(labels.positions_m[frame], pose)
        pixels = project(seen, labels.intrinsics)
        assert np.isfinite(pixels).all()
        rays = np.linalg.solve(labels.intrinsics, np.c_[pixels, np.ones(68)].T).T
        back = to_world((rays * seen[:, 2:]).astype(np.float32), pose)
        np.testing.assert_allclose(back, labels.positions_m[frame], atol=1e-5)
    wrist = to_camera(labels.positions_m[0], labels.camera_poses[0])[EGODEX_JOINTS.index("rightHand")]
    np.testing.assert_allclose(wrist, [0.14 + 0.03 * np.sin(1), 0.1 + 0.02 * np.cos(1), 0.5], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "which", "text"),
    [
        ("reversible", "1", "Pour water from the jug."),
        ("reversible", "2", "Pour water back into the jug."),
        ("reversible", 2, "Pour water back into the jug."),
        ("typical", "2", "Pour water from the jug."),
    ],
)
def test_the_description_that_holds_is_taken(
    tmp_path: Path, write_egodex: WriteEgodex, kind: str, which: Any, text: str
) -> None:
    def change(file: Any) -> None:
        file.attrs.update({"llm_type": kind, "which_llm_description": which})

    assert LabelSource(write_egodex(tmp_path / "0.hdf5", 3, change=change)).read().description == text


def test_intrinsics_and_confidences_may_be_missing(tmp_path: Path, write_egodex: WriteEgodex) -> None:
    def change(file: Any) -> None:
        del file["camera/intrinsic"], file["confidences"]
        file["camera/intrinsic"] = np.zeros((0, 3))

    labels = LabelSource(write_egodex(tmp_path / "0.h5", 3, change=change)).read()
    assert labels.intrinsics is None
    assert (labels.confidences == 1).all()


BROKEN = [
    (set_at("transforms/rightHand", (2, 1, 3), np.nan), "'rightHand' at frame 2 is"),
    (set_at("transforms/rightHand", (1, 1, 3), np.inf), "'rightHand' at frame 1 is"),
    (set_at("confidences/hip", (1,), np.nan), "confidence of 'hip' at frame 1 is nan"),
    (set_at("confidences/hip", (1,), 1.5), "confidence of 'hip' at frame 1 is 1.5: allowed are 0 to 1"),
    (set_at("transforms/camera", (1, 0, 0), 3), "the camera's pose at frame 1 is no rotation"),
    (
        replace("transforms/hip", np.zeros((4, 4, 4))),
        "'transforms/hip' has 4 frames, the file's others have 3",
    ),
    (replace("transforms/hip", np.zeros((3, 3))), r"shape \(3, 3\), expected \(frames, 4, 4\)"),
    (replace("confidences/hip", np.ones(2)), "'confidences/hip' has 2 frames"),
    (replace("transforms/hip", "text"), "'transforms/hip' is no array of numbers"),
    (replace("camera/intrinsic", np.zeros((3, 3))), "are no camera"),
    (replace("camera/intrinsic", np.zeros((2, 3))), r"expected \(3, 3\)"),
    (lambda file: file.pop("transforms"), "no group 'transforms' with joints"),
    (replace("transforms", np.zeros(3)), "'transforms' is no group"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_broken_egodex_files_are_refused_in_one_line(
    tmp_path: Path, write_egodex: WriteEgodex, change: Callable[[Any], Any], message: str
) -> None:
    path = write_egodex(tmp_path / "0.hdf5", 3, change=lambda file: change(file) and None)
    with pytest.raises(LabelError, match=message) as error:
        LabelSource(path).read()
    assert str(error.value).startswith("'0.hdf5': ")
    assert "\n" not in str(error.value)


def test_a_mirrored_camera_is_refused(tmp_path: Path, write_egodex: WriteEgodex) -> None:
    mirrored = np.tile(np.diag([1.0, 1, -1, 1]), (3, 1, 1))
    path = write_egodex(tmp_path / "0.hdf5", 3, change=replace("transforms/camera", mirrored))
    with pytest.raises(LabelError, match="right-handed"):
        LabelSource(path).read()


def test_nothing_outside_an_egodex_file_is_read(tmp_path: Path, write_egodex: WriteEgodex) -> None:
    other = write_egodex(tmp_path / "other.hdf5", 3)
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(3 * 16 * 4))
    layout = h5py.VirtualLayout((3, 4, 4), "f4")
    layout[...] = h5py.VirtualSource(other, "transforms/hip", (3, 4, 4))

    def link(file: Any) -> None:
        file["transforms/hip"] = h5py.ExternalLink(other, "transforms/hip")

    def soft(file: Any) -> None:
        file["transforms/hip"] = h5py.SoftLink("/transforms/spine1")

    def raw_data(file: Any) -> None:
        file.create_dataset("transforms/hip", (3, 4, 4), "f4", external=[(raw, 0, 3 * 16 * 4)])

    def virtual(file: Any) -> None:
        file.create_virtual_dataset("transforms/hip", layout)

    for change, message in ((link, "link"), (soft, "link"), (raw_data, "another file"), (virtual, "another")):

        def hostile(file: Any, change: Callable[[Any], None] = change) -> None:
            del file["transforms/hip"]
            change(file)

        with pytest.raises(LabelError, match=f"'transforms/hip'.*{message}"):
            LabelSource(write_egodex(tmp_path / "0.hdf5", 3, change=hostile)).read()


def test_a_declared_size_that_the_file_cannot_hold_is_never_allocated(
    tmp_path: Path, write_egodex: WriteEgodex
) -> None:
    def huge(file: Any) -> None:
        del file["transforms/camera"]
        file.create_dataset("transforms/camera", (10**9, 4, 4), "f8", chunks=(16, 4, 4))

    with pytest.raises(LabelError, match="declares more than the file can hold: 'transforms/camera'"):
        LabelSource(write_egodex(tmp_path / "0.hdf5", 3, change=huge)).read()


@pytest.mark.parametrize("cut", [0, 5, 700, 20_000])
def test_files_that_are_cut_short_or_no_hdf5_are_refused(
    tmp_path: Path, write_egodex: WriteEgodex, cut: int
) -> None:
    path = write_egodex(tmp_path / "0.hdf5", 3)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(LabelError, match="HDF5"):
        LabelSource(path).read()


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".joints.csv"])
def test_tables_of_joints_are_read_with_gaps_as_not_known(tmp_path: Path, suffix: str) -> None:
    table = pa.table(
        {
            "frame": [0, 2, 2],
            "joint": ["rightHand", "leftHand", "rightHand"],
            "x": [0.1, 0.2, 0.3],
            "y": [0.0, 0.0, 0.5],
            "z": [1.0, 1.0, 2.0],
            "confidence": [0.25, 1.0, 0.5],
            "reference_frame": ["world"] * 3,
            **{name: [value] * 3 for name, value in (("fx", 100), ("fy", 90), ("cx", 64), ("cy", 48))},
        }
    )
    path = tmp_path / f"0{suffix}"
    (pq.write_table if path.suffix == ".parquet" else pyarrow.csv.write_csv)(table, path)
    labels = LabelSource(path).read()
    assert (labels.joint_names, labels.reference_frame) == (("rightHand", "leftHand"), "world")
    np.testing.assert_array_equal(labels.confidences, [[0.25, 0], [0, 0], [0.5, 1]])
    np.testing.assert_allclose(labels.positions_m[2], [[0.3, 0.5, 2], [0.2, 0, 1]])
    assert (labels.positions_m[1] == 0).all()
    np.testing.assert_array_equal(labels.intrinsics, [[100, 0, 64], [0, 90, 48], [0, 0, 1]])


def test_a_table_without_a_frame_of_reference_is_the_cameras(tmp_path: Path) -> None:
    labels = LabelSource(csv_of(tmp_path, HEADER + "0,a,0,0,1\n")).read()
    assert (labels.reference_frame, labels.intrinsics, labels.camera_poses) == ("camera", None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as csv"),
        (HEADER, "has no rows"),
        ("frame;joint;x;y;z\n0;a;1;2;3\n", "has no column 'frame'; it has 'frame;joint;x;y;z'"),
        (HEADER + "0,a,1,2,NaN\n", "row 0 has no z: leave the row out"),
        (HEADER + "0,a,1,2,inf\n", "'a' at frame 0 is"),
        (HEADER + "0,a,1,2,1e300\n", "'a' at frame 0 is"),
        (HEADER + "0,a,1,2,3\n0,b,1,,3\n", "row 1 has no y"),
        (HEADER + "0,a,1,2,far\n", "cannot be read as csv"),
        (HEADER + "0.5,a,1,2,3\n", "cannot be read as csv"),
        (HEADER + "-1,a,1,2,3\n", "frame -1 is not from 0"),
        (HEADER + "1000000000000,a,1,2,3\n", "frame 1000000000000 is not from 0 to 999,999"),
        (HEADER + "4,a,1,2,3\n4,a,1,2,3\n", "frame 4 has joint 'a' more than once"),
        (HEADER + "4,,1,2,3\n", "joint '' is no name"),
        ("frame,joint,x,y,z,confidnce\n0,a,1,2,3,1\n", "column 'confidnce' is unknown"),
        ("frame,joint,x,y,z,fx\n0,a,1,2,3,1\n", "give all four or none"),
        ("frame,joint,x,y,z,reference_frame\n0,a,1,2,3,moon\n", "reference_frame is 'moon'"),
        ("frame,joint,x,y,z,confidence\n0,a,1,2,3,2\n", "confidence of 'a' at frame 0 is 2"),
        (
            "frame,joint,x,y,z,reference_frame\n0,a,1,2,3,world\n1,a,1,2,3,camera\n",
            "'reference_frame' changes from 'world' to 'camera'",
        ),
    ],
)
def test_broken_tables_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LabelError, match=message) as error:
        LabelSource(csv_of(tmp_path, text)).read()
    assert "\n" not in str(error.value)


def test_a_file_of_another_format_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "0.parquet").write_bytes(b"PAR1 this is none PAR1")
    with pytest.raises(LabelError, match=r"'0\.parquet': cannot be read as parquet"):
        LabelSource(tmp_path / "0.parquet").read()


def test_the_label_file_beside_a_video_is_found_and_only_one_plain_file_counts(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    video, outside = folder / "a.b.mp4", tmp_path / "outside.csv"
    assert find_labels(video, folder) is None
    (folder / "a.csv").write_text("of another video")
    assert find_labels(video, folder) is None
    (folder / "a.b.csv").write_text("x")
    assert find_labels(video, folder) == LabelSource(folder / "a.b.csv")
    (folder / "a.b.hdf5").write_text("x")
    with pytest.raises(LabelError, match=r"several label files \('a.b.hdf5', 'a.b.csv'\): keep one"):
        find_labels(video, folder)
    outside.write_text("x")
    (folder / "link.csv").symlink_to(outside)
    (folder / "gone.csv").symlink_to(folder / "nothing")
    os.mkfifo(folder / "pipe.csv")
    (folder / "folder.csv").mkdir()
    for name in ("link", "gone", "pipe", "folder"):
        with pytest.raises(LabelError, match=f"'{name}.csv' is not a plain file in the folder"):
            find_labels(folder / f"{name}.mp4", folder)


def folder_table(names: dict[str, float]) -> pa.Table:
    """Two frames of a right hand for each video, at a depth of its own."""
    rows = [(name, frame, "rightHand", 0.0, 0.0, z) for name, z in names.items() for frame in (1, 0)]
    return pa.table(
        dict(zip(("video", "frame", "joint", "x", "y", "z"), zip(*rows, strict=True), strict=True))
    )


@pytest.mark.parametrize("name", ["joints.parquet", "joints.csv"])
def test_a_table_of_the_folder_labels_the_videos_that_it_names(tmp_path: Path, name: str) -> None:
    table = folder_table({"pour/1.mp4": 2.0, "pour/0.mp4": 1.0, "other.mp4": 3.0})
    (pq.write_table if name.endswith("parquet") else pyarrow.csv.write_csv)(table, tmp_path / name)
    (tmp_path / "pour").mkdir()
    for video, depth in (("pour/0.mp4", 1.0), ("pour/1.mp4", 2.0), ("other.mp4", 3.0)):
        found = find_labels(tmp_path / video, tmp_path)
        assert found is not None
        np.testing.assert_array_equal(found.read().positions_m[:, 0, 2], [depth, depth])
    assert find_labels(tmp_path / "pour" / "2.mp4", tmp_path) is None
    assert find_labels(tmp_path / "pour" / "0.mp4", tmp_path / "pour") is None, "above the videos folder"
    (tmp_path / "pour" / "0.hdf5").write_text("x")
    with pytest.raises(LabelError, match=rf"several label files \('0.hdf5', '{name}'\)"):
        find_labels(tmp_path / "pour" / "0.mp4", tmp_path)


def test_a_changed_table_of_the_folder_is_read_again(tmp_path: Path) -> None:
    pyarrow.csv.write_csv(folder_table({"0.mp4": 1.0}), tmp_path / "joints.csv")
    before = find_labels(tmp_path / "0.mp4", tmp_path)
    assert before is not None
    digest = before.digest()
    pyarrow.csv.write_csv(folder_table({"0.mp4": 1.5, "1.mp4": 1.0}), tmp_path / "joints.csv")
    after = find_labels(tmp_path / "0.mp4", tmp_path)
    assert after is not None
    assert after.read().positions_m[0, 0, 2] == 1.5
    assert after.digest() != digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "0,a,1,2,3\n", "'joints.csv': has no column 'video'"),
        ("video,frame,joint,x,y,z\n0.mp4,0,a,1,2,inf\n", "'joints.csv': 'a' at frame 0 is"),
        ("video,frame,joint,x,y\n0.mp4,0,a,1,2\n", "'joints.csv': has no column 'z'"),
    ],
)
def test_broken_tables_of_a_folder_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "joints.csv").write_text(text)
    with pytest.raises(LabelError, match=message):
        found = find_labels(tmp_path / "0.mp4", tmp_path)
        assert found is not None
        found.read()


def test_a_video_named_joints_has_a_table_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "joints.csv").write_text(HEADER + "0,a,1,2,3\n")
    found = find_labels(tmp_path / "joints.mp4", tmp_path)
    assert found == LabelSource(tmp_path / "joints.csv")
    assert found.read().joint_names == ("a",)
