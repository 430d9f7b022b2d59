"""Planning and rendering of episodes; rendering itself only where mujoco and a GL library are."""

import os
import subprocess
import sys
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from hands import generate
from hands.generate import RenderError, check_renderable, render_episode
from hands.minimum_jerk import Path as JerkPath
from hands.minimum_jerk import minimum_jerk
from hands.plan import (
    CARD_BODY,
    CONDITIONS,
    FPS,
    HELD_OUT_PAIRS,
    NEUTRAL_CARD_BODY,
    PLACES,
    TASKS,
    draw_plan,
    episode_rng,
    shown_card,
)
from hands.things import COLORS, KINDS, draw_thing

from thinkjepa.pipeline.sample.episodes import POSES_FILE, read_archive

RENDER_HANDS = Path(__file__).parents[2] / "tools" / "render_hands"


def test_minimum_jerk_goes_from_rest_to_rest_and_stays():
    times_s = np.linspace(0, 2, 2001)
    share = minimum_jerk(times_s, 0.5, 1.5)
    assert share[:500].max() == 0
    assert share[1501:].min() == pytest.approx(1)
    assert share[1000] == pytest.approx(0.5)
    assert np.gradient(share, times_s).max() == pytest.approx(1.875, abs=1e-3)  # of its mean speed
    assert (np.diff(share) >= -1e-12).all()


def test_overlapping_steps_end_where_they_lead():
    path = JerkPath(np.array([1.0, 2.0]))
    path.move_to([3.0, 2.0], 0.0, 1.0)
    path.bump([0.0, 5.0], 0.2, 0.5, 0.9)
    path.move_to([3.0, 7.0], 0.8, 2.0)
    np.testing.assert_allclose(path.at(np.array([0.0, 2.0])), [[1, 2], [3, 7]])
    np.testing.assert_allclose(path.end, [3, 7])


@pytest.mark.parametrize("kind", KINDS)
def test_distances_are_those_to_the_nearest_point_of_the_surface(kind):
    thing = draw_thing(np.random.default_rng(0), kind, "red", 0.1, 0.2)
    half = np.array(thing.half_sizes_m)
    center = thing.center_m
    above = center + np.array([0, 0, half[2] + 0.01])
    assert thing.distances_m(above) == pytest.approx(0.01, abs=2e-3)
    assert thing.distances_m(center + np.array([0, 0, half[2]])) == pytest.approx(0, abs=1e-9)
    assert thing.distances_m(center + 0.3 * half * np.array([1, 0, 0])) < 0


@pytest.mark.parametrize("task", TASKS)
def test_a_card_is_gone_before_the_window_or_there_until_the_split_or_neutral(task):
    for episode in range(10):
        plan = draw_plan(episode_rng(1, episode), task)
        timing = plan.timing
        first, end = timing.card_frames("cue")
        assert 0 < first < end <= timing.split_frame - 10  # half a second
        late_first, late_end = timing.card_frames("late-cue")
        assert late_end == timing.split_frame
        assert late_end - late_first == end - first
        assert timing.card_frames("no-cue") == (first, end)
        assert shown_card(plan, "cue", first) == shown_card(plan, "late-cue", late_first) == CARD_BODY
        assert shown_card(plan, "no-cue", first) == NEUTRAL_CARD_BODY
        assert all(shown_card(plan, condition, timing.split_frame) is None for condition in CONDITIONS)
        assert len({thing.color for thing in plan.things}) == len(plan.things) == 3
        assert [x for x, _ in plan.pads_m] == sorted(x for x, _ in plan.pads_m)


@pytest.mark.parametrize("task", TASKS)
def test_a_thing_is_put_within_the_first_window_and_put_back_within_four(task):
    for episode in range(10):
        timing = draw_plan(episode_rng(1, episode), task).timing
        put, back = timing.put, timing.back
        times_s = [timing.split_frame / FPS, *astuple(put), *astuple(back), timing.num_frames / FPS]
        assert times_s == sorted(times_s)
        assert put.release_s - timing.split_frame / FPS < 1.6
        assert back.rest_s - timing.split_frame / FPS < 6.4


def test_pairs_that_are_held_out_leave_every_color_and_every_place_in_others():
    pairs = {(color, place) for color in COLORS for place in PLACES}
    assert len(HELD_OUT_PAIRS) == len(COLORS)
    for color in COLORS:
        assert len([pair for pair in pairs - HELD_OUT_PAIRS if pair[0] == color]) == 2
    for place in PLACES:
        assert len([pair for pair in pairs - HELD_OUT_PAIRS if pair[1] == place]) == 4


def test_more_episodes_only_add_and_seeds_differ():
    first = [draw_plan(episode_rng(0, number), "move_ball") for number in range(3)]
    assert first[:2] == [draw_plan(episode_rng(0, number), "move_ball") for number in range(2)]
    assert first[0] != first[1]
    assert first[0] != draw_plan(episode_rng(1, 0), "move_ball")


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(generate, "find_spec", lambda name: None)
    with pytest.raises(RenderError, match=r"pip install 'thinkjepa\[sample\]'.*libegl1") as error:
        check_renderable(size_px=128)
    assert "\n" not in str(error.value)


def test_odd_sizes_are_refused():
    with pytest.raises(RenderError, match="even and at least 64 px"):
        check_renderable(size_px=97)


@pytest.mark.usefixtures("gl")
def test_same_seed_same_bytes_of_poses_and_episodes_only_add(tmp_path):
    def write(name: str, *, count: int) -> bytes:
        out = tmp_path / name
        paths = generate.render_episodes({"cue": out}, numbers=range(count), seed=5, size_px=64, workers=1)
        assert all(path.is_file() for path in paths)
        return (out / POSES_FILE).read_bytes()

    assert write("first", count=2) == write("second", count=2)
    write("fewer", count=1)
    _, (lone,) = read_archive(tmp_path / "fewer" / POSES_FILE)
    _, (beside, _) = read_archive(tmp_path / "first" / POSES_FILE)
    np.testing.assert_array_equal(lone.hand, beside.hand)


@pytest.mark.usefixtures("gl")
def test_conditions_share_all_but_the_card(tmp_path):
    episodes = render_episode(
        {condition: tmp_path / condition for condition in CONDITIONS}, 0, seed=7, size_px=64
    )
    cue = episodes["cue"]
    assert cue.facts.card_frames == episodes["no-cue"].facts.card_frames
    for condition, episode in episodes.items():
        assert (tmp_path / condition / episode.facts.video).is_file()
        np.testing.assert_array_equal(episode.hand, cue.hand)
        np.testing.assert_array_equal(episode.camera, cue.camera)
        same = {"condition": "cue", "card_frames": cue.facts.card_frames}
        assert replace(episode.facts, **same) == cue.facts


@pytest.mark.usefixtures("gl")
def test_pictures_differ_between_conditions_where_there_is_a_card_and_nowhere_else():
    from hands.motion import draw_episode
    from hands.render import draw_frames
    from hands.scene import read_skeleton

    skeleton = read_skeleton()
    plan, motion = draw_episode(episode_rng(7, 0), "move_ball", skeleton)
    frames = draw_frames(plan, motion, skeleton, conditions=CONDITIONS, size_px=64)
    early, late = (set(range(*plan.timing.card_frames(condition))) for condition in ("cue", "late-cue"))
    for condition, expected in (("no-cue", early), ("late-cue", early ^ late)):
        differing = (frames[condition] != frames["cue"]).any(axis=(1, 2, 3))
        assert set(np.flatnonzero(differing)) == expected, condition


@pytest.mark.usefixtures("gl")
def test_chosen_frames_are_those_of_the_whole_episode():
    from hands.motion import draw_episode
    from hands.render import draw_frames
    from hands.scene import read_skeleton

    skeleton = read_skeleton()
    plan, motion = draw_episode(episode_rng(3, 0), "carry_can", skeleton, pairs="seen")
    assert plan.pair not in HELD_OUT_PAIRS
    whole = draw_frames(plan, motion, skeleton, conditions=["cue"], size_px=64)["cue"]
    chosen = [0, plan.timing.card_frames("cue")[0], len(whole) - 1]
    some = draw_frames(plan, motion, skeleton, conditions=["no-cue", "cue"], size_px=64, chosen=chosen)
    np.testing.assert_array_equal(some["cue"], whole[chosen])
    assert (some["cue"][1] != some["no-cue"][1]).any()
    np.testing.assert_array_equal(some["cue"][[0, 2]], some["no-cue"][[0, 2]])


@pytest.mark.usefixtures("gl")
def test_the_shipped_skeleton_is_that_of_the_installed_hand_and_agrees_with_the_simulator():
    import mujoco
    from hands.adroit import EGODEX_BODIES
    from hands.motion import draw_episode
    from hands.render import quaternion_of
    from hands.scene import HAND_BODY, build_model, read_skeleton

    from thinkjepa.pipeline.sample.skeleton import NUM_BASE

    skeleton = read_skeleton()
    plan, motion = draw_episode(episode_rng(0, 0), "move_ball", skeleton)
    model = build_model(plan, size_px=64)
    data = mujoco.MjData(model)
    state = motion.hand[60:61]
    origins, rotations = skeleton.bodies_of(state)
    data.qpos[:] = state[0, NUM_BASE:]
    hand = model.body(HAND_BODY).mocapid[0]
    data.mocap_pos[hand], data.mocap_quat[hand] = origins[0, 0], quaternion_of(rotations[0, 0])
    mujoco.mj_forward(model, data)
    ours = skeleton.joint_poses(state)[0]
    for joint, body in EGODEX_BODIES.items():
        np.testing.assert_allclose(ours[skeleton.joints.index(joint), :3, 3], data.body(body).xpos, atol=1e-9)
        turn = data.body(body).xmat.reshape(3, 3)
        np.testing.assert_allclose(ours[skeleton.joints.index(joint), :3, :3], turn, atol=1e-9)


def test_the_command_refuses_impossible_sizes_before_anything_is_written(tmp_path):
    out = tmp_path / "episodes"
    command = [RENDER_HANDS, out, "--size", "97"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "VENV": sys.prefix}
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "97 px" in done.stderr
    assert "even" in done.stderr
    assert not out.exists()
