"""Episodes written to a folder: videos, positions next to them, and the tables of clips and classes.

    OUT/<part>/<number>.mp4
    OUT/<part>/<number>.joints.csv    frame, joint ("agent"), x, y, z, reference_frame ("world")
    OUT/clips.csv                     video, split_frame, group, partition
    OUT/classes.csv                   video, condition, cue, side
    OUT/episodes.json                 facts by video

World: x along the hallway, y up, z to the right of who walks along it; metres, a cell is `CELL_M`.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from memory_maze.picture import draw_frames
from memory_maze.walk import CONDITIONS, FPS, Condition, MazeError, Walk, draw_walk
from thinkjepa.pipeline.sample.expand import FACTS_FILE
from thinkjepa.pipeline.sample.tables import CLASSES_FILE, CLIPS_FILE, write_rows
from thinkjepa.pipeline.sample.videos import encode_video

SIZE_PX = 96

CELL_M = 0.1
"""A step at the pace of a hand: 0.4 to 0.5 m/s."""

JOINT = "agent"

QP, KEY_INTERVAL_S = 20, 4.0

Position = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of an episode; frames are counted from 0."""

    condition: Condition
    cue: str
    """Kind of the start room's object, also where a box hides it."""
    side: str
    """Side of the fork that the expert takes: left or right."""
    ends_m: tuple[Position, Position]
    """Where the left and the right way end."""
    cue_frames: tuple[int, int]
    split_frame: int
    num_frames: int
    fps: int
    seed: int
    episode: int


def check_drawable() -> None:
    """Raise MazeError where minigrid is missing."""
    if find_spec("minigrid") is None:
        raise MazeError("the memory maze needs minigrid: pip install 'thinkjepa[sample]'")


def write_parts(
    out: Path,
    parts: Mapping[str, tuple[int, int]],
    *,
    conditions: Sequence[Condition] = CONDITIONS,
    workers: int = 1,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Path]:
    """Write `out/<condition>` with all parts, each a number of episodes and a seed. Returns the files.

    Episode i of a part depends on its seed and on i alone. Walks are equal under all conditions.
    """
    check_drawable()
    folders = {condition: out / condition for condition in conditions}
    facts: dict[Condition, dict[str, Facts]] = {condition: {} for condition in conditions}
    # Fresh processes, as the encoder's threads do not survive a fork. One alone draws here.
    context = multiprocessing.get_context("spawn")
    with nullcontext() if workers == 1 else ProcessPoolExecutor(workers, mp_context=context) as pool:
        for part, (episodes, seed) in parts.items():
            write = partial(write_episode, folders, part=part, seed=seed)
            numbers = range(episodes)
            for number, written in enumerate(pool.map(write, numbers) if pool else map(write, numbers)):
                for condition, record in written.items():
                    facts[condition][f"{part}/{number}.mp4"] = record
                advance(1)
    return [file for condition in conditions for file in _write_tables(folders[condition], facts[condition])]


def write_episode(
    folders: Mapping[Condition, Path], number: int, *, part: str, seed: int
) -> dict[Condition, Facts]:
    """Write the video and the positions of an episode into the folder of each condition."""
    walk, written = draw_walk(seed, number), {}
    for condition, folder in folders.items():
        video = folder / part / f"{number}.mp4"
        frames = draw_frames(walk, condition, size_px=SIZE_PX)
        encode_video(video, frames, fps=FPS, qp=QP, key_interval_s=KEY_INTERVAL_S)
        _write_positions(video.with_suffix(".joints.csv"), walk)
        written[condition] = _facts(walk, condition, seed=seed, number=number)
    return written


def _facts(walk: Walk, condition: Condition, *, seed: int, number: int) -> Facts:
    middle = walk.maze.height // 2
    return Facts(
        condition=condition,
        cue=walk.cue,
        side=walk.side,
        ends_m=(position_m(walk.fork_x, middle - 1), position_m(walk.fork_x, middle + 1)),
        cue_frames=walk.cue_frames,
        split_frame=walk.split_frame,
        num_frames=len(walk.cells),
        fps=FPS,
        seed=seed,
        episode=number,
    )


def position_m(x: float, y: float) -> Position:
    """The position of a place in the maze, given in cells."""
    return round(float(x) * CELL_M, 5), 0.0, round(float(y) * CELL_M, 5)


def _write_positions(path: Path, walk: Walk) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("frame", "joint", "x", "y", "z", "reference_frame"))
        for frame, cell in enumerate(walk.cells):
            writer.writerow((frame, JOINT, *position_m(*cell), "world"))


def _write_tables(out: Path, episodes: Mapping[str, Facts]) -> list[Path]:
    clips = [
        {
            "video": video,
            "split_frame": facts.split_frame,
            "group": f"{facts.seed}-{facts.episode}",
            "partition": video.partition("/")[0],
        }
        for video, facts in episodes.items()
    ]
    classes = [
        {"video": video, "condition": facts.condition, "cue": facts.cue, "side": facts.side}
        for video, facts in episodes.items()
    ]
    records = {video: asdict(facts) for video, facts in episodes.items()}
    (out / FACTS_FILE).write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return [
        out / FACTS_FILE,
        write_rows(out / CLIPS_FILE, clips),
        write_rows(out / CLASSES_FILE, classes),
        *(out / name for video in episodes for name in (video, video.removesuffix(".mp4") + ".joints.csv")),
    ]
