"""The episodes that come with the package keep what they promise, and are written out as EgoDex has them."""

import csv
import json
import shutil
from importlib.resources import files
from pathlib import Path

import av
import h5py
import numpy as np
import pytest
from hands.archive import checked_positions_m, stored_checks_m, write_archive

from thinkjepa.pipeline.sample.episodes import (
    PLACES,
    POSES_FILE,
    ArchiveError,
    Episode,
    camera_transforms,
    joint_transforms,
    read_archive,
)
from thinkjepa.pipeline.sample.expand import expand
from thinkjepa.pipeline.sample.skeleton import Skeleton
from thinkjepa.pipeline.sample.tables import cell_of
from thinkjepa.stages.data.cutting.reading import read_clip_file
from thinkjepa.stages.data.joints import PAPER_JOINTS
from thinkjepa.stages.data.labels.readers import LabelSource
from thinkjepa.stages.data.trajectories import project, to_camera, to_world

HANDS = Path(str(files("thinkjepa.pipeline.sample") / "hands"))
MAX_ERROR_M = 1e-4

pytestmark = pytest.mark.skipif(not HANDS.is_dir(), reason="this checkout holds no rendered episodes")


@pytest.fixture(scope="module")
def shipped() -> tuple[Skeleton, list[Episode]]:
    return read_archive(HANDS / POSES_FILE)


@pytest.fixture(scope="module")
def expanded(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("hands")
    expand(HANDS, out)
    return out


def frames_of(path: Path) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_there_are_at_least_90_episodes_of_3_to_6_s_in_at_most_6_mb(shipped):
    _, episodes = shipped
    assert len(episodes) >= 90
    assert all(3.0 <= episode.facts.num_frames / episode.facts.fps <= 6.0 for episode in episodes)
    held = [path for path in HANDS.rglob("*") if path.is_file()]
    videos = {episode.facts.video for episode in episodes}
    assert {path.relative_to(HANDS).as_posix() for path in held} - {POSES_FILE} == videos
    assert sum(path.stat().st_size for path in held) <= 6e6


def test_episodes_vary_and_no_task_is_rare(shipped):
    _, episodes = shipped
    tasks = [episode.facts.task for episode in episodes]
    assert len(set(tasks)) >= 8
    assert min(map(tasks.count, set(tasks))) >= 10
    assert {episode.facts.place for episode in episodes} == set(PLACES)
    assert len({episode.facts.object for episode in episodes}) >= 30
    assert len({episode.facts.description for episode in episodes}) >= 60


def test_every_video_has_a_frame_per_pose_at_30_per_second(shipped):
    for episode in shipped[1]:
        with av.open(HANDS / episode.facts.video) as container:
            stream = container.streams.video[0]
            assert stream.average_rate == 30
            assert (stream.width, stream.height) == (128, 128)
            assert stream.frames == episode.facts.num_frames
    assert len(frames_of(HANDS / shipped[1][0].facts.video)) == shipped[1][0].facts.num_frames


def test_positions_are_within_a_tenth_of_a_millimetre_of_those_rendered(shipped):
    skeleton, episodes = shipped
    decoded = np.array([checked_positions_m(skeleton, episode.hand) for episode in episodes])
    errors_m = np.linalg.norm(decoded - stored_checks_m(HANDS / POSES_FILE), axis=-1)
    assert 0 < errors_m.max() < MAX_ERROR_M


def test_writing_and_reading_again_changes_nothing(shipped, tmp_path):
    skeleton, episodes = shipped
    again = tmp_path / POSES_FILE
    write_archive(again, skeleton, episodes[:3])
    read_skeleton, read_episodes = read_archive(again)
    assert read_skeleton.joints == skeleton.joints
    for before, after in zip(episodes, read_episodes, strict=False):
        assert after.facts == before.facts
        np.testing.assert_array_equal(after.hand, before.hand)
        np.testing.assert_array_equal(after.camera, before.camera)
        np.testing.assert_array_equal(after.intrinsics, before.intrinsics)


@pytest.mark.parametrize("damage", ["cut", "empty", "missing"])
def test_a_damaged_archive_is_one_clear_error(tmp_path, damage):
    path, content = tmp_path / POSES_FILE, (HANDS / POSES_FILE).read_bytes()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(ArchiveError, match=r"poses\.npz"):
        read_archive(path)


def test_the_card_is_gone_before_the_split_and_the_hand_sets_out_after_it(shipped):
    """Until the split, the hand only sways: nothing in its path tells where it will go."""
    skeleton, episodes = shipped
    for episode in episodes:
        facts = episode.facts
        first, end = facts.card_frames
        assert facts.condition == "cue"
        assert first / facts.fps >= 0.15
        assert end / facts.fps <= 1.1
        assert end + 12 <= facts.split_frame < facts.grasp_frame < facts.release_frame < facts.num_frames
        assert facts.split_frame >= 36
        wrist_m = skeleton.joint_poses(episode.hand)[:, skeleton.joints.index("rightHand"), :3, 3]
        before_m = np.linalg.norm(wrist_m[: facts.split_frame] - wrist_m[0], axis=-1).max()
        after_m = np.linalg.norm(wrist_m[facts.grasp_frame] - wrist_m[facts.split_frame])
        assert before_m < 0.03
        assert after_m > 0.08


def test_expansion_writes_what_egodex_readers_expect(shipped, expanded):
    skeleton, episodes = shipped
    assert len(list(expanded.rglob("*.mp4"))) == len(list(expanded.rglob("*.hdf5"))) == len(episodes)
    assert len(json.loads((expanded / "episodes.json").read_text())) == len(episodes)
    for episode in episodes[::16]:
        facts = episode.facts
        video = expanded / facts.video
        assert video.read_bytes() == (HANDS / facts.video).read_bytes()
        with h5py.File(video.with_suffix(".hdf5")) as file:
            assert set(file["transforms"]) == {"camera", *skeleton.joints}
            assert set(file["confidences"]) == set(skeleton.joints)
            assert file["camera/intrinsic"].shape == (3, 3)
            for poses in file["transforms"].values():
                assert poses.shape == (facts.num_frames, 4, 4)
                turn = poses[:, :3, :3].astype(float)
                np.testing.assert_allclose(
                    turn @ turn.swapaxes(1, 2), np.broadcast_to(np.eye(3), turn.shape), atol=1e-5
                )
                np.testing.assert_allclose(np.linalg.det(turn), 1.0, atol=1e-5)
                assert (poses[:, 3] == [0, 0, 0, 1]).all()
            assert file.attrs["llm_description"] == facts.description
            assert file.attrs["which_llm_description"] == "1"
            assert file.attrs["llm_type"] != "reversible"


def test_episodes_in_folders_are_written_out_with_their_clips_and_classes(tmp_path, shipped):
    skeleton, episodes = shipped
    for folder, some in {"train/cue": episodes[:2], "test/cue": episodes[2:3]}.items():
        for episode in some:
            video = tmp_path / "episodes" / folder / episode.facts.video
            video.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HANDS / episode.facts.video, video)
        write_archive(tmp_path / "episodes" / folder / POSES_FILE, skeleton, some)
    written = expand(tmp_path / "episodes", tmp_path / "out")
    assert {path for path in (tmp_path / "out").rglob("*") if path.is_file()} == set(written)
    clips = read_clip_file(tmp_path / "out" / "clips.csv")
    clips.check_videos([path.relative_to(tmp_path / "out").as_posix() for path in written], tmp_path)
    rows = {video: row for video, (row,) in clips.by_video.items()}
    assert {video: row.partition for video, row in rows.items()} == {
        **{f"train/cue/{episode.facts.video}": "train" for episode in episodes[:2]},
        f"test/cue/{episodes[2].facts.video}": "test",
    }
    for episode in episodes[:2]:
        row = rows[f"train/cue/{episode.facts.video}"]
        assert row.split_frame == episode.facts.split_frame
        assert row.group == f"{episode.facts.seed}-{episode.facts.episode}"
    with (tmp_path / "out" / "classes.csv").open() as file:
        classes = list(csv.DictReader(file))
    assert [line["color"] for line in classes] == [
        episode.facts.object.split()[0] for episode in (episodes[2], *episodes[:2])
    ]


@pytest.mark.parametrize(
    ("position_m", "cell"),
    [((0.165, 0, -0.205), "1,1"), ((-0.165, 0, -0.415), "-2,3"), ((-0.055, 9, -0.31), "-1,2")],
)
def test_a_cell_is_a_square_of_the_table(position_m, cell):
    assert cell_of(position_m) == cell


def test_joints_return_from_the_pixels(expanded):
    """Through the reader: world, camera, pixels, and with the joint's depth all the way back."""
    for video in sorted(expanded.rglob("*.mp4"))[::16]:
        labels = LabelSource(video.with_suffix(".hdf5")).read()
        assert (labels.source, labels.reference_frame) == ("egodex", "world")
        for frame in (0, labels.num_frames // 2, labels.num_frames - 1):
            seen = to_camera(labels.positions_m[frame], labels.camera_poses[frame])
            before = seen[:, 2] > 0  # a forearm may reach behind the camera
            pixels = project(seen[before], labels.intrinsics)
            rays = np.linalg.solve(labels.intrinsics, np.c_[pixels, np.ones(len(pixels))].T).T
            back = to_world((rays * seen[before, 2:]).astype(np.float32), labels.camera_poses[frame])
            assert before.sum() >= 20
            np.testing.assert_allclose(back, labels.positions_m[frame][before], atol=1e-5)


def test_joints_have_egodex_names_and_those_that_adroit_lacks_are_left_out(shipped):
    joints = set(shipped[0].joints)
    right = {name for name in PAPER_JOINTS if name.startswith("right")}
    lacking = {f"right{finger}FingerMetacarpal" for finger in ("Index", "Middle", "Ring")}
    assert joints == right - lacking


def test_joints_project_onto_the_hand_in_the_picture(shipped):
    """Nothing hides the resting hand: where a knuckle is, the picture changes when the hand leaves."""
    skeleton, episodes = shipped
    on_hand, beside = [], []
    for episode in episodes[::12]:
        split, grasp = episode.facts.split_frame, episode.facts.grasp_frame
        frames = frames_of(HANDS / episode.facts.video).astype(float)
        knuckles = [
            joint_transforms(skeleton, episode)[f"right{name}FingerKnuckle"] for name in ("Index", "Ring")
        ]
        positions_m = np.stack([poses[split, :3, 3] for poses in knuckles]).astype(np.float32)
        pixels = project(to_camera(positions_m, camera_transforms(episode)[split]), episode.intrinsics)
        changes = np.abs(frames[split] - frames[grasp]).sum(axis=-1)
        for x, y in pixels.round().astype(int):
            assert 0 <= x < 128
            if y < 126:
                on_hand.append(changes[y - 1 : y + 2, x - 1 : x + 2].mean())
                beside.append(np.median(changes))
    assert len(on_hand) >= 8
    assert np.mean(np.array(on_hand) > 3 * np.array(beside)) > 0.8


def test_the_camera_moves_a_little_and_looks_down_at_the_hand(shipped):
    skeleton, episodes = shipped
    for episode in episodes[::8]:
        poses = camera_transforms(episode)
        assert 0.002 < np.ptp(poses[:, :3, 3], axis=0).max() < 0.05
        assert (poses[:, 1, 3] > 0.4).all(), "above the table: y is up"
        assert (poses[:, 1, 2] < -0.5).all(), "it looks down: its z is forward"
        assert (poses[:, 1, 1] < -0.3).all(), "its y points down"
        wrist_m = joint_transforms(skeleton, episode)["rightHand"][:, :3, 3]
        depth_m = to_camera(wrist_m[:, None].astype(np.float32)[0], poses[0])[..., 2]
        assert 0.2 < float(depth_m[0]) < 0.8


def test_the_hand_is_at_the_object_when_it_grasps_and_at_the_place_when_it_lets_go(shipped):
    skeleton, episodes = shipped
    tips = [f"right{name}Tip" for name in ("Thumb", "IndexFinger", "MiddleFinger")]
    for episode in episodes:
        facts, joints = episode.facts, joint_transforms(skeleton, episode)
        moments = ((facts.grasp_frame, facts.objects_m[0]), (facts.release_frame - 1, facts.places_m[0]))
        for frame, position_m in moments:
            middle_m = np.mean([joints[tip][frame, :3, 3] for tip in tips], axis=0)
            assert np.linalg.norm(middle_m - position_m) < 0.06, (facts.video, frame)
