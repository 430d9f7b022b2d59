"""An expert's walk through a maze: a look at the start room's object, then on to its like at the fork.

The maze is MiniGrid's MemoryEnv as it is (arXiv 2306.13831), and it judges the walk. Cells are counted
from the picture's upper left, x to the right and y down. Headings are
quarter turns: 0 right, 1 down, 2 left, 3 up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from thinkjepa.cache import ThinkJepaError

if TYPE_CHECKING:
    from minigrid.envs.memory import MemoryEnv

Floats = npt.NDArray[np.float64]

Condition = Literal["cue", "no-cue"]

CONDITIONS: tuple[Condition, ...] = get_args(Condition)

Side = Literal["left", "right"]

FPS = 20

SIZE_CELLS = 17

SHORTEST_HALLWAY = 9
"""x of the hallway's last cell, at least: the object has been out of view for 4 steps at the split."""

LOOK_X, LOOK_STEPS = 3, 5
"""The expert looks from the start room's middle. Of 8 frames spread over any history, one is in that time."""

CELLS_BEFORE_FORK = 3
"""Where the clip is split. Both objects of the fork have been in view for longer than the observed window."""

PACE_S = (0.20, 0.26)
"""Seconds an action takes, drawn for each episode. Of a continuous range, so that no two videos are alike."""

FUTURE_S = 2.0
"""Seconds from the split to the video's end. The expert arrives after 1.0 to 1.3 s, and stays."""

VIEW_CELLS = 7
"""Side of the view: 6 cells ahead, 3 to each side, none behind, as MiniGrid has it."""


class MazeError(ThinkJepaError):
    """A maze cannot be drawn here, or the expert lost its way."""


@dataclass(frozen=True, slots=True)
class Walk:
    """An episode: its maze, and where the expert is at each frame."""

    maze: MemoryEnv
    cue: str
    """Kind of the start room's object: key or ball."""
    side: Side
    """Of the fork, as the expert comes to it: that of the matching object."""
    fork_x: int
    cells: Floats
    """`(frame, 2)`: x and y."""
    headings: Floats
    """`(frame,)`, not wrapped."""
    split_frame: int

    @property
    def cue_cell(self) -> tuple[int, int]:
        """The cell of the start room's object."""
        return cue_cell(self.maze)

    @property
    def cue_frames(self) -> tuple[int, int]:
        """First frame with any of the start room's object in view, and the first after the last one."""
        ahead, right = in_view(np.array(self.cue_cell), self.cells, self.headings)
        seen = (ahead > -1) & (ahead < VIEW_CELLS) & (np.abs(right) < (VIEW_CELLS + 1) / 2)
        frames = np.flatnonzero(seen & (np.arange(len(seen)) < self.split_frame))
        return int(frames[0]), int(frames[-1]) + 1


def in_view(cell: Floats, cells: Floats, headings: Floats) -> tuple[Floats, Floats]:
    """Cells ahead and to the right `(frame,)` of a cell's middle, as seen from poses."""
    x, y = (cell - cells).T
    angle = headings * np.pi / 2
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def draw_walk(seed: int, number: int) -> Walk:
    """The walk of an episode: it depends on the seed and on the number alone."""
    rng = np.random.default_rng([seed, number])
    maze = _draw_maze(rng)
    cue, fork_x = _object(maze, cue_cell(maze)), int(maze.success_pos[0])
    matching_up = _object(maze, (fork_x, maze.height // 2 - 2)) == cue
    side: Side = "left" if matching_up else "right"
    states, split_state = _states(maze, side, fork_x)
    pace_s = rng.uniform(*PACE_S)
    split_frame = int(np.ceil(split_state * pace_s * FPS))
    times_s = np.arange(split_frame + round(FUTURE_S * FPS)) / FPS
    state_times_s = np.arange(len(states)) * pace_s
    x, y, headings = (np.interp(times_s, state_times_s, column) for column in states.T)
    return Walk(maze, cue, side, fork_x, np.stack([x, y], axis=1), headings, split_frame)


def cue_cell(maze: MemoryEnv) -> tuple[int, int]:
    """The cell of the start room's object."""
    return 1, maze.height // 2 - 1


def _draw_maze(rng: np.random.Generator) -> MemoryEnv:
    """A maze of a hallway that is long enough."""
    from minigrid.envs.memory import MemoryEnv

    maze = MemoryEnv(size=SIZE_CELLS, random_length=True)
    while True:
        maze.reset(seed=int(rng.integers(2**31)))
        if maze.success_pos[0] - 1 >= SHORTEST_HALLWAY:
            return maze


def _object(maze: MemoryEnv, cell: tuple[int, int]) -> str:
    found = maze.grid.get(*cell)
    assert found is not None, "MemoryEnv has an object here"
    return str(found.type)


def _states(maze: MemoryEnv, side: Side, fork_x: int) -> tuple[Floats, int]:
    """x, y and heading `(state, 3)` before and after all actions, and the state of the split."""
    heading = int(maze.agent_dir)
    states, split_state = [(*maze.agent_pos, heading)], 0
    for action in _actions(maze, side, fork_x):
        _, reward, ended, _, _ = maze.step(getattr(maze.actions, action))
        heading += {"left": -1, "right": 1}.get(action, 0)
        states.append((*maze.agent_pos, heading))
        if action == "forward" and heading % 4 == 0 and maze.agent_pos[0] == fork_x - CELLS_BEFORE_FORK:
            split_state = len(states) - 1
    if not ended or reward <= 0:
        raise MazeError(f"the expert went to the wrong object, at {tuple(map(int, maze.agent_pos))}")
    return np.array(states, np.float64), split_state


def _actions(maze: MemoryEnv, side: Side, fork_x: int) -> Iterator[str]:
    """The expert's actions by MiniGrid's names; each is taken before the next is asked for."""
    if maze.agent_pos[0] > LOOK_X:
        yield from ("left", "left")
    while maze.agent_pos[0] != LOOK_X:
        yield "forward"
    if maze.agent_dir == 0:
        yield from ("left", "left")
    yield from ("done",) * LOOK_STEPS  # MiniGrid's action that does nothing
    yield from ("left", "left")
    while maze.agent_pos[0] != fork_x:
        yield "forward"
    yield from (side, "forward")
