"""The contract of label formats: every module of `labels/formats` is held to it by being there.

A new format needs a line in `WRITERS`, and no test of its own for what is common to all.
"""

from __future__ import annotations

import csv
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pytest

from thinkjepa.cache import VideoLabels
from thinkjepa.stages.data.labels import formats
from thinkjepa.stages.data.labels.contract import LabelError, LabelReader, check_values
from thinkjepa.stages.data.labels.formats import FOLDER_FILES, OWN_FILES, READERS
from thinkjepa.stages.data.labels.readers import LabelSource, find_labels

JOINTS = ("rightHand", "leftHand")
POSITIONS_M = np.arange(24, dtype=np.float32).reshape(4, 2, 3) / 8
CONFIDENCES = np.array([[1, 0.5], [1, 0], [0.25, 1], [1, 1]], dtype=np.float32)


def write_egodex(path: Path, labels: VideoLabels) -> None:
    with h5py.File(path, "w") as file:
        for index, joint in enumerate(labels.joint_names):
            poses = np.tile(np.eye(4), (labels.num_frames, 1, 1))
            poses[:, :3, 3] = labels.positions_m[:, index]
            file[f"transforms/{joint}"] = poses
            file[f"confidences/{joint}"] = labels.confidences[:, index]


def write_table(path: Path, labels: VideoLabels) -> None:
    """As CSV; a joint that is not known has no row."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["frame", "joint", "x", "y", "z", "confidence"])
        for frame, index in np.argwhere(labels.confidences > 0):
            position_m, sure = labels.positions_m[frame, index], labels.confidences[frame, index]
            writer.writerow([frame, labels.joint_names[index], *position_m, sure])


WRITERS: dict[str, tuple[str, Callable[[Path, VideoLabels], None]]] = {
    "egodex": (".hdf5", write_egodex),
    "joint_table": (".csv", write_table),
}
"""By module: the end of a file's name, and a function that writes labels in that format."""

MODULES = [item.name for item in pkgutil.iter_modules(formats.__path__)]
NAMES = [*(f"0{suffix}" for suffix in OWN_FILES), *FOLDER_FILES]


def made() -> VideoLabels:
    return VideoLabels(
        source="",
        reference_frame="camera",
        joint_names=JOINTS,
        positions_m=POSITIONS_M.copy(),
        confidences=CONFIDENCES.copy(),
    )


def written(tmp_path: Path, module: str, labels: VideoLabels) -> Path:
    suffix, write = WRITERS[module]
    path = tmp_path / f"0{suffix}"
    write(path, labels)
    return path


def test_every_format_has_a_writer_here() -> None:
    assert set(WRITERS) == set(MODULES)
    assert [import_module(f"{formats.__name__}.{name}").READER for name in MODULES] == list(READERS)


@pytest.mark.parametrize("reader", READERS, ids=MODULES)
def test_names_of_files_belong_to_one_format(reader: LabelReader) -> None:
    assert reader.suffixes
    assert all(suffix.startswith(".") for suffix in reader.suffixes)
    others = [other for other in READERS if other is not reader]
    assert not set(reader.suffixes) & {suffix for other in others for suffix in other.suffixes}
    assert not set(reader.folder_files) & {name for other in others for name in other.folder_files}


@pytest.mark.parametrize("module", MODULES)
def test_what_is_known_returns_and_nothing_else_is_known(tmp_path: Path, module: str) -> None:
    labels = LabelSource(written(tmp_path, module, made())).read()
    check_values(labels)
    assert labels.source
    assert set(labels.joint_names) == set(JOINTS)
    order = [labels.joint_names.index(name) for name in JOINTS]
    assert labels.positions_m.dtype == labels.confidences.dtype == np.float32
    np.testing.assert_array_equal(labels.confidences[:, order], CONFIDENCES)
    known = CONFIDENCES > 0
    np.testing.assert_array_equal(labels.positions_m[:, order][known], POSITIONS_M[known])
    assert (labels.video, labels.video_digest, labels.label_digest) == ("", "", ""), "who reads adds them"


@pytest.mark.parametrize("module", MODULES)
def test_a_label_file_is_found_by_its_name_and_known_by_its_content(tmp_path: Path, module: str) -> None:
    path = written(tmp_path, module, made())
    found = find_labels(tmp_path / "0.mp4", tmp_path)
    assert found == LabelSource(path)
    before = found.digest()
    written(tmp_path, module, replace(made(), positions_m=POSITIONS_M + 1))
    assert found.digest() != before
    assert found.read().positions_m.max() == POSITIONS_M.max() + 1


@pytest.mark.parametrize("module", MODULES)
def test_labels_of_far_more_frames_than_the_video_has_are_refused(tmp_path: Path, module: str) -> None:
    source = LabelSource(written(tmp_path, module, made()))
    assert source.read_for(2).num_frames == 4, "recorders stop a frame or two apart"
    with pytest.raises(LabelError, match="has labels for 4 frames, the video has 1"):
        source.read_for(1)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    ("field", "index", "value", "message"),
    [
        ("positions_m", (2, 1, 0), np.nan, "leftHand|row 4 has no x"),
        ("positions_m", (2, 1, 0), np.inf, "'leftHand' at frame 2 is .*: positions are finite metres"),
        ("confidences", (3, 0), 1.5, "confidence of 'rightHand' at frame 3 is 1.5"),
    ],
)
def test_impossible_numbers_are_refused_with_joint_and_frame(
    tmp_path: Path, module: str, field: str, index: tuple[int, ...], value: float, message: str
) -> None:
    labels = made()
    getattr(labels, field)[index] = value
    with pytest.raises(LabelError, match=message):
        LabelSource(written(tmp_path, module, labels)).read()


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", ["left,hand", "x" * 60_000, "a\u202eb"])
def test_names_that_no_flag_can_hold_are_refused_in_every_format(
    tmp_path: Path, module: str, name: str
) -> None:
    labels = replace(made(), joint_names=("rightHand", name))
    with pytest.raises(LabelError, match="is no name") as error:
        LabelSource(written(tmp_path, module, labels)).read()
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("content", [b"", b"\x00" * 4096, b"no labels\n", bytes(range(256)) * 16])
@pytest.mark.parametrize("name", NAMES)
def test_any_other_content_is_refused_in_one_line_that_names_the_file(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    rows_of = "0.mp4" if name in FOLDER_FILES else None
    with pytest.raises(LabelError) as error:
        LabelSource(path, rows_of=rows_of).read()
    assert str(error.value).startswith(repr(name))
    assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(LabelError, match="cannot be read: No such file"):
        LabelSource(path).read()
