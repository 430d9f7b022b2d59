"""Joints of clips: cut at the clip's frames, in the camera frame of the last observed one."""

from pathlib import Path

import numpy as np
import pytest

from thinkjepa.cache import ClipRow, FeatureCache, VideoLabels, WriteSession
from thinkjepa.stages.data.joints import EGODEX_JOINTS, KEYPOINTS, PAPER_JOINTS, choose_joints
from thinkjepa.stages.data.trajectories import (
    Supervision,
    clip_trajectory,
    project,
    reference_frame,
    to_camera,
    to_world,
)
from thinkjepa.stages.errors import StageError

QUARTER_TURN = np.array([[0.0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])
"""A camera at (1, 2, 3) whose x axis is the world's y, and whose y axis is the world's -x."""


def labels_of(
    digest: str = "d" * 64, *, joints: tuple[str, ...] = ("a", "b"), frames: int = 10
) -> VideoLabels:
    """Joint j at frame f stands at (f, j, 3); the camera climbs by one metre a frame."""
    positions = np.zeros((frames, len(joints), 3), dtype=np.float32)
    positions[..., 0] = np.arange(frames)[:, None]
    positions[..., 1] = np.arange(len(joints))
    positions[..., 2] = 3
    poses = np.repeat(QUARTER_TURN[None], frames, axis=0)
    poses[:, 2, 3] += np.arange(frames)
    confidences = np.full((frames, len(joints)), 0.5, dtype=np.float32)
    return VideoLabels(
        "test",
        "world",
        joints,
        positions,
        confidences,
        poses,
        video=f"{digest[:4]}.mp4",
        video_digest=digest,
        label_digest="l",
    )


def clip_of(digest: str, *, observed: tuple[int, ...] = (2, 3), future: tuple[int, ...] = (4, 6)) -> ClipRow:
    split = observed[-1] + 1
    return ClipRow(
        clip_id=f"{digest[:16]}@{split}",
        video=f"{digest[:4]}.mp4",
        video_digest=digest,
        thinker_sampling="t",
        dense_sampling="d",
        split_frame=split,
        split_time_s=split / 30,
        thinker_frames=(0, split - 1),
        thinker_times_s=(0.0, (split - 1) / 30),
        observed_frames=observed,
        observed_times_s=tuple(frame / 30 for frame in observed),
        future_frames=(future,),
        future_times_s=(tuple(frame / 30 for frame in future),),
    )


def supervision_of(root: Path, labels: list[VideoLabels], clips: list[ClipRow], joints: str) -> Supervision:
    with WriteSession(root) as session:
        session.add_clips(clips)
        session.add_labels(labels)
    cache = FeatureCache.open(root)
    return Supervision(cache.labels, cache.clips.all(), joints=joints)


def test_joints_are_cut_at_the_frames_and_seen_from_the_last_observed_camera() -> None:
    found = clip_trajectory(labels_of(), ("a", "b"), observed_frames=(2, 3), future_frames=((4, 6),))
    # World (x, y, z) is (y - 2, -(x - 1), z - 6) in the camera of frame 3, by hand.
    np.testing.assert_allclose(found.observed_m[0], [[-2, -1, -3], [-1, -1, -3]], atol=1e-6)
    np.testing.assert_allclose(found.future_m[0, 1], [[-2, -5, -3], [-1, -5, -3]], atol=1e-6)
    assert found.camera_pose is not None
    np.testing.assert_array_equal(found.camera_pose[:3, 3], [1, 2, 6])


def test_later_cameras_change_no_trajectory() -> None:
    labels = labels_of()
    moved = labels_of()
    assert moved.camera_poses is not None
    moved.camera_poses[4:] += 7.0
    for name in ("observed_m", "future_m"):
        first, second = (
            getattr(clip_trajectory(item, ("a",), observed_frames=(2, 3), future_frames=((4, 5),)), name)
            for item in (labels, moved)
        )
        assert np.abs(first - second).max() == 0


def test_the_world_comes_back_from_the_camera() -> None:
    points = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(to_world(to_camera(points, QUARTER_TURN), QUARTER_TURN), points, atol=1e-6)


def test_projection_by_hand_and_nothing_behind_the_camera() -> None:
    intrinsics = np.array([[100.0, 0, 64], [0, 50, 32], [0, 0, 1]])
    pixels = project(np.array([[0.5, -0.2, 2.0], [1, 1, -1]], dtype=np.float32), intrinsics)
    np.testing.assert_allclose(pixels[0], [64 + 25, 32 - 5])
    assert np.isnan(pixels[1]).all()


def test_joints_that_a_video_lacks_have_no_confidence() -> None:
    found = clip_trajectory(labels_of(), ("b", "c"), observed_frames=(0,), future_frames=((1,),))
    np.testing.assert_array_equal(found.future_confidence[0, 0], [0.5, 0.0])
    np.testing.assert_array_equal(found.observed_confidence, [[0.5, 0.0]])


def test_a_fixed_camera_without_pose_is_the_frame_of_reference() -> None:
    item = labels_of()
    fixed = VideoLabels("test", "camera", item.joint_names, item.positions_m, item.confidences)
    world = VideoLabels("test", "world", item.joint_names, item.positions_m, item.confidences)
    assert (reference_frame(item), reference_frame(fixed), reference_frame(world)) == (
        "camera",
        "camera",
        "world",
    )
    found = clip_trajectory(fixed, ("a",), observed_frames=(2,), future_frames=((4,),))
    np.testing.assert_array_equal(found.future_m[0, 0, 0], [4, 0, 3])


def test_clips_without_labels_are_left_out_and_say_why(tmp_path: Path) -> None:
    digests = [letter * 64 for letter in "abcd"]
    labels = [labels_of(digests[0]), labels_of(digests[1], frames=6), labels_of(digests[2], joints=("z",))]
    supervision = supervision_of(tmp_path, labels, [clip_of(digest) for digest in digests], "a,b")
    assert supervision.clip_ids == {"a" * 16 + "@4"}
    assert supervision.joints == ("a", "b")
    assert supervision.reference_frames == ("camera",)
    reasons = {clip_id[0]: reason for clip_id, reason in supervision.without.items()}
    assert reasons == {
        "b": "video 'bbbb.mp4' has labels for 6 frames, the clip needs frame 6",
        "c": "video 'cccc.mp4' has labels for none of the chosen joints",
        "d": "video 'dddd.mp4' has no labels",
    }
    found = supervision.trajectory("a" * 16 + "@4")
    assert found.future_m.shape == (1, 2, 2, 3)


def test_no_labels_at_all_are_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"no clip has hand labels.*thinkjepa-data import"):
        supervision_of(tmp_path, [], [clip_of("a" * 64)], "auto")


def test_joint_sets_have_the_published_sizes() -> None:
    assert (len(PAPER_JOINTS), len(KEYPOINTS), len(EGODEX_JOINTS)) == (52, 12, 68)
    assert len(set(EGODEX_JOINTS)) == 68
    assert set(KEYPOINTS) < set(PAPER_JOINTS) < set(EGODEX_JOINTS)
    assert PAPER_JOINTS[0].startswith("right")


def test_joints_are_chosen_from_what_is_labelled() -> None:
    labelled = [("hip", "rightHand"), ("rightThumbTip",)]
    assert choose_joints("auto", labelled) == ("rightThumbTip", "rightHand")
    assert choose_joints("keypoints", labelled) == ("rightHand", "rightThumbTip")
    assert choose_joints("all", labelled) == ("hip", "rightHand", "rightThumbTip")
    assert choose_joints("hip, rightHand", labelled) == ("hip", "rightHand")
    assert choose_joints("auto", [("hip",)]) == ("hip",)
    with pytest.raises(StageError, match="'elbow'; there are hip"):
        choose_joints("elbow", labelled)
    with pytest.raises(StageError, match="--joints keypoints"):
        choose_joints("keypoints", [("hip",)])


def test_joints_that_no_training_clip_knows_are_left_out(tmp_path: Path) -> None:
    """`b` is known nowhere, `c` only in a clip that is not trained on, `d` only before the split."""
    digests = [letter * 64 for letter in "abc"]
    labels = [labels_of(digest, joints=("a", "b", "c", "d")) for digest in digests]
    for item in labels:
        item.confidences[:, 1:] = 0
        item.confidences[:4, 3] = 1
    labels[2].confidences[4, 2] = 0.1
    clips = [clip_of(digest) for digest in digests]
    trained = [clip.clip_id for clip in clips[:2]]
    supervision = supervision_of(tmp_path, labels, clips, "auto")
    assert supervision.joints == ("a", "b", "c", "d")
    known = supervision.knowing(trained)
    assert (known.joints, known.never_known) == (("a",), ("b", "c", "d"))
    assert known.clip_ids == supervision.clip_ids
    assert known.trajectory(trained[0]).future_m.shape == (1, 2, 1, 3)
    assert supervision.knowing([clip.clip_id for clip in clips]).joints == ("a", "c")
    assert supervision.joints == ("a", "b", "c", "d"), "the first one stays as it was"


def test_a_joint_that_is_never_known_cannot_be_asked_for(tmp_path: Path) -> None:
    labels = labels_of("a" * 64)
    labels.confidences[:, 1] = 0
    clip = clip_of("a" * 64)
    with pytest.raises(StageError, match=r"--joints: 'b' is labelled and never known: .* known are a"):
        supervision_of(tmp_path, [labels], [clip], "a,b").knowing([clip.clip_id])


def test_without_any_known_joint_there_is_nothing_to_learn(tmp_path: Path) -> None:
    labels, clip = labels_of("a" * 64), clip_of("a" * 64)
    labels.confidences[:] = 0
    with pytest.raises(StageError, match=r"every joint has confidence 0 .*--task latent"):
        supervision_of(tmp_path, [labels], [clip], "auto").knowing([clip.clip_id])
