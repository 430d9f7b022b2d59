"""The recipe that turns MediaPipe's landmarks into a table of joints, with landmarks of a made-up hand."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from thinkjepa.stages.data.joints import PAPER_JOINTS
from thinkjepa.stages.data.labels.readers import find_labels
from thinkjepa.stages.data.trajectories import project

SIZE_PX = (320, 180)
RECIPE = Path(__file__).parents[2] / "recipes" / "mediapipe_hands.py"


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    return runpy.run_path(str(RECIPE))


def hand(seed: int, place_m: tuple[float, float, float]) -> Any:
    """21 joints in the camera's frame, some centimetres around a place."""
    random = np.random.default_rng(seed)
    return np.array(place_m) + random.normal(scale=0.04, size=(21, 3))


def landmarks(hands: list[tuple[str, float, Any]]) -> Any:
    """MediaPipe's result for hands (side, score, joints in the camera's frame)."""

    def points(values: Any) -> list[Any]:
        return [SimpleNamespace(**dict(zip("xyz", map(float, value), strict=False))) for value in values]

    focal = SIZE_PX[0]
    intrinsics = np.array([[focal, 0, SIZE_PX[0] / 2], [0, focal, SIZE_PX[1] / 2], [0, 0, 1]])
    return SimpleNamespace(
        handedness=[[SimpleNamespace(category_name=side, score=score)] for side, score, _ in hands],
        hand_landmarks=[points(project(joints, intrinsics) / SIZE_PX) for _, _, joints in hands],
        hand_world_landmarks=[points(joints - joints.mean(axis=0)) for _, _, joints in hands],
    )


def test_a_hand_returns_to_its_place_before_the_camera(recipe: dict[str, Any], tmp_path: Path) -> None:
    """Both hands of frame 0, the right one of frame 2: read back by the project, as they were made."""
    left, right, later = hand(0, (-0.1, 0.05, 0.4)), hand(1, (0.15, 0.0, 0.7)), hand(2, (0.1, -0.1, 0.5))
    table = recipe["rows"](landmarks([("Left", 0.9, left), ("Right", 0.8, right)]), 0, SIZE_PX)
    table += recipe["rows"](landmarks([]), 1, SIZE_PX)
    table += recipe["rows"](landmarks([("Right", 1.00001, later)]), 2, SIZE_PX)
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "0.joints.parquet")
    found = find_labels(tmp_path / "0.mp4", tmp_path)
    assert found is not None
    labels = found.read()
    assert labels.reference_frame == "camera"
    assert labels.num_frames == 3
    assert set(labels.joint_names) < set(PAPER_JOINTS)
    for side, frame, joints in (("left", 0, left), ("right", 0, right), ("right", 2, later)):
        places = [labels.joint_names.index(side + joint) for joint in recipe["JOINTS"]]
        np.testing.assert_allclose(labels.positions_m[frame, places], joints, atol=1e-6)
    wrists = [labels.joint_names.index(name) for name in ("leftHand", "rightHand")]
    np.testing.assert_allclose(labels.confidences[:, wrists], [[0.9, 0.8], [0, 0], [0, 1]])
    assert labels.intrinsics is not None
    assert labels.intrinsics[0].tolist() == [320, 0, 160]


def test_of_two_hands_of_a_side_the_surer_one_is_taken(recipe: dict[str, Any]) -> None:
    sure, unsure = hand(3, (0.0, 0.0, 0.5)), hand(4, (0.2, 0.0, 0.5))
    table = recipe["rows"](landmarks([("Right", 0.9, sure), ("Right", 0.6, unsure)]), 5, SIZE_PX)
    assert [row["joint"] for row in table] == ["right" + joint for joint in recipe["JOINTS"]]
    np.testing.assert_allclose([table[0][axis] for axis in "xyz"], sure[0], atol=1e-6)
    assert {(row["frame"], row["confidence"]) for row in table} == {(5, 0.9)}


def test_a_model_file_that_is_not_there_is_named(recipe: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"nothing.task' is no file: get hand_landmarker.task"):
        recipe["main"](str(tmp_path / "nothing.task"), [])
