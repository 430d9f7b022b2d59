"""The memory maze: its expert, what its pictures show when, its files, and the evidence's steps on it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from commands import run_command
from evidence.measure import FILE
from evidence.plan import Plan, PlanError
from evidence.runs import run_one
from evidence.tasks import TASKS
from memory_maze.evidence import PARAMS, decide, write_videos
from memory_maze.generate import JOINT, SIZE_PX, write_parts
from memory_maze.picture import TILE_PX, draw_chart, draw_frames
from memory_maze.walk import (
    CELLS_BEFORE_FORK,
    FPS,
    VIEW_CELLS,
    MazeError,
    Walk,
    _draw_maze,
    _states,
    draw_walk,
    in_view,
)

from thinkjepa.stages.data.labels.formats.joint_table import READER
from thinkjepa.stages.data.sampling import history_frames, observed_frames

pytest.importorskip("minigrid")


@pytest.fixture(scope="module")
def walks() -> list[Walk]:
    return [draw_walk(5, number) for number in range(24)]


def swap_cue(walk: Walk) -> None:
    """Put the other object into the start room."""
    from minigrid.core.world_object import Ball, Key

    walk.maze.grid.set(*walk.cue_cell, (Key if walk.cue == "ball" else Ball)("green"))


def test_the_expert_takes_both_sides_after_both_objects(walks):
    """MiniGrid itself judged each walk: one to the wrong object raises."""
    found = Counter((walk.cue, walk.side) for walk in walks)
    assert set(found) == {(cue, side) for cue in ("key", "ball") for side in ("left", "right")}
    middle = walks[0].maze.height // 2
    for walk in walks:
        assert walk.cells[-1].tolist() == [walk.fork_x, middle + (-1 if walk.side == "left" else 1)]


def test_a_walk_to_the_other_object_is_refused():
    maze = _draw_maze(np.random.default_rng(0))
    right = "left" if maze.success_pos[1] < maze.height // 2 else "right"
    wrong = "right" if right == "left" else "left"
    with pytest.raises(MazeError, match="wrong object"):
        _states(maze, wrong, int(maze.success_pos[0]))  # type: ignore[arg-type]


def test_an_episode_depends_on_its_seed_and_number_alone(walks):
    again, other = draw_walk(5, 3), draw_walk(6, 3)
    assert (again.cells == walks[3].cells).all()
    assert other.cells.shape != again.cells.shape or (other.cells != again.cells).any()
    assert len({walk.cells.tobytes() for walk in walks}) == len(walks)


def test_position_and_heading_tell_no_side_before_the_split(walks):
    for walk in walks:
        before = slice(walk.split_frame - FPS // 2, walk.split_frame)
        assert (walk.cells[before, 1] == walk.maze.height // 2).all()
        assert np.ptp(walk.headings[before]) == 0
        at_split = walk.fork_x - CELLS_BEFORE_FORK
        assert walk.cells[walk.split_frame - 1, 0] < at_split <= walk.cells[walk.split_frame, 0]


def test_the_thinker_sees_the_cue_and_the_window_does_not(walks):
    for walk in walks:
        times_s = np.arange(len(walk.cells)) / FPS
        first, end = walk.cue_frames
        seen = history_frames(times_s, walk.split_frame, num_frames=8)
        ahead, right = in_view(np.array(walk.cue_cell), walk.cells[seen], walk.headings[seen])
        assert ((ahead >= 0) & (ahead <= VIEW_CELLS - 1) & (np.abs(right) <= VIEW_CELLS // 2)).any()
        window = observed_frames(times_s, walk.split_frame, num_frames=4, fps=10)
        assert first < end <= window[0] - FPS // 2  # half a second, at least


def test_the_window_shows_both_objects_of_the_fork(walks):
    middle = walks[0].maze.height // 2
    for walk in walks:
        window = slice(walk.split_frame - 8, walk.split_frame)
        for row in (middle - 2, middle + 2):
            cell = np.array([walk.fork_x, row])
            ahead, right = in_view(cell, walk.cells[window], walk.headings[window])
            assert ((ahead >= 0) & (ahead <= VIEW_CELLS - 1) & (np.abs(right) <= VIEW_CELLS // 2)).all()


@pytest.mark.parametrize("number", range(2))
def test_no_pixel_before_the_split_tells_the_cue_but_where_it_is_in_view(number):
    walk = draw_walk(5, number)
    frames, neutral = (draw_frames(walk, condition, size_px=SIZE_PX) for condition in ("cue", "no-cue"))
    swap_cue(walk)
    swapped = draw_frames(walk, "cue", size_px=SIZE_PX)
    first, end = walk.cue_frames
    differs = (frames[: walk.split_frame] != swapped[: walk.split_frame]).any(axis=(1, 2, 3))
    assert differs.any()
    assert not differs[:first].any()
    assert not differs[end:].any()
    assert (draw_frames(walk, "no-cue", size_px=SIZE_PX) == neutral).all()  # never any difference there


def test_a_picture_is_the_chart_before_the_walker():
    """Facing right from the middle of a cell, the picture is the chart turned by a quarter."""
    walk = draw_walk(5, 0)
    frame = int(np.argmax((walk.cells == np.round(walk.cells)).all(axis=1) & (walk.headings % 4 == 0)))
    margin = (VIEW_CELLS * TILE_PX,) * 2
    chart = np.pad(draw_chart(walk.maze, walk.cue_cell, "cue").astype(float), (margin, margin, (0, 0)))
    x, y = walk.cells[frame].astype(int) + VIEW_CELLS
    top = y - VIEW_CELLS // 2
    part = chart[top * TILE_PX : (top + VIEW_CELLS) * TILE_PX, x * TILE_PX : (x + VIEW_CELLS) * TILE_PX]
    wanted = np.rot90(part)
    drawn = draw_frames(walk, "cue", size_px=VIEW_CELLS * TILE_PX // 2)[frame].astype(float)
    small = wanted.reshape(VIEW_CELLS * TILE_PX // 2, 2, -1, 2, 3).mean(axis=(1, 3))
    assert np.abs(drawn - small)[: -TILE_PX // 2].mean() < 1  # the walker is in the lowest row


def test_the_side_is_that_of_the_nearer_end_in_the_last_frame():
    fact = {"side": "left", "ends_m": [[1.2, 0.0, 0.7], [1.2, 0.0, 0.9]]}
    joints, frames = ("other", JOINT), np.array([40, 42])

    def found(z_m: float) -> float:
        world_m = np.full((2, 2, 3), 0.9)
        world_m[1, 1] = (1.1, 0.0, z_m)  # nothing else is read
        return decide(joints, world_m, frames, fact)["side"]

    assert (found(0.72), found(0.88), found(0.8)) == (1.0, 0.0, 0.5)


def test_files_are_videos_with_positions_and_tables(tmp_path):
    parts = {"train": (2, 1), "test": (1, 3)}
    write_parts(tmp_path / "a", parts)
    write_parts(tmp_path / "b", parts)
    for file in (tmp_path / "a").rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()
    cue, neutral = tmp_path / "a" / "cue", tmp_path / "a" / "no-cue"
    facts = json.loads((cue / "episodes.json").read_text())
    assert list(facts) == ["train/0.mp4", "train/1.mp4", "test/0.mp4"]
    assert (cue / "train/0.joints.csv").read_bytes() == (neutral / "train/0.joints.csv").read_bytes()
    assert (cue / "train/0.mp4").read_bytes() != (neutral / "train/0.mp4").read_bytes()
    assert (cue / "clips.csv").read_bytes() == (neutral / "clips.csv").read_bytes()
    with (cue / "clips.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["partition"]) for row in rows] == [
        ("1-0", "train"),
        ("1-1", "train"),
        ("3-0", "test"),
    ]
    labels = READER.read(cue / "test/0.joints.csv")
    walk = draw_walk(3, 0)
    assert (labels.joint_names, labels.reference_frame) == ((JOINT,), "world")
    np.testing.assert_allclose(labels.positions_m[:, 0, [0, 2]], walk.cells * 0.1, atol=1e-5)
    np.testing.assert_allclose(
        labels.positions_m[-1, 0], facts["test/0.mp4"]["ends_m"][walk.side == "right"], atol=1e-6
    )


def small_plan(project: Path, **changes: Any) -> Plan:
    values = {**yaml.safe_load(PARAMS.read_text()), **changes}
    project.mkdir(parents=True, exist_ok=True)
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    return Plan.read(project / "params.yaml")


def test_the_arms_are_those_of_the_hands_with_equal_budgets():
    plan, hands = (Plan.read(task.params) for task in (TASKS["memory_maze"], TASKS["hands"]))
    assert plan.train == hands.train
    assert {name: arm for name, arm in plan.arms.items() if name != "oracle"} == {
        name: arm for name, arm in hands.arms.items() if name != "oracle"
    }
    assert plan.arms["oracle"]["guidance_source"] == "oracle:side"
    assert plan.conditions == {name: hands.conditions[name] for name in ("cue", "no-cue")}
    assert (len(plan.seeds), plan.horizons, hands.horizons) == (3, (4, 8), (4, 8, 16, 32))


def test_an_unknown_task_is_refused(tmp_path):
    with pytest.raises(PlanError, match=r"task 'maze': there are hands, memory_maze"):
        small_plan(tmp_path, task="maze")


def test_episodes_of_another_plan_are_drawn_again(tmp_path):
    parts = {name: {"episodes": 1, "seed": seed} for seed, name in enumerate(("train", "validation", "test"))}
    done: list[int] = []
    write_videos(small_plan(tmp_path, parts=parts), tmp_path, 1, done.append)
    video = tmp_path / "videos" / "cue" / "test" / "0.mp4"
    first = video.stat().st_mtime_ns
    write_videos(small_plan(tmp_path, parts=parts), tmp_path, 1, done.append)
    assert (sum(done), video.stat().st_mtime_ns) == (6, first)
    parts["test"]["seed"] = 9
    write_videos(small_plan(tmp_path, parts=parts), tmp_path, 1, done.append)
    assert video.stat().st_mtime_ns != first
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == ["cue", "no-cue"]


@pytest.mark.soak
def test_the_steps_of_the_evidence_run_on_the_maze(tmp_path, tiny_models):
    """With tiny untrained models: every clip has all figures, and a held position takes no side."""
    parts = {"train": (10, 1), "validation": (3, 2), "test": (4, 3)}
    plan = small_plan(
        tmp_path,
        parts={name: {"episodes": size, "seed": seed} for name, (size, seed) in parts.items()},
        conditions={"cue": ["thinkjepa", "oracle"]},
        train={**yaml.safe_load(PARAMS.read_text())["train"], "epochs": 1},
        caches={"untrained": {"condition": "cue"}},
        seeds=[0],
    )
    write_videos(plan, tmp_path, 1, lambda count: None)
    videos = tmp_path / "videos" / "cue"
    extracted = run_command(
        "thinkjepa-cache",
        *("extract", "--videos", videos, "--clips", videos / "clips.csv"),
        *("--cache-dir", tmp_path / "features" / "cue", "--device", "cpu"),
        *("--thinker", tiny_models / "thinker", "--encoder", tiny_models / "encoder"),
        *("--observed-frames", 4, "--future-frames", 16, "--dense-fps", 10, "--thinker-frames", 8),
    )
    assert extracted.returncode == 0, extracted.stderr
    for job in plan.jobs():
        run_one(plan, tmp_path, job)
        table = pq.read_table(tmp_path / "runs" / job.name / FILE)
        assert sorted(table["group"].to_pylist()) == [f"3-{number}" for number in range(4)]
        assert set(table["constant_pose_side"].to_pylist()) == {0.5}
        assert set(table["model_side"].to_pylist()) <= {0.0, 0.5, 1.0}
        assert "model_rollout_ade_8_m" in table.column_names
        assert "model_rollout_ade_16_m" not in table.column_names
