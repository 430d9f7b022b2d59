"""The tasks that the evidence can be made on, and all in which they differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import memory_maze.evidence as maze
import numpy as np
import numpy.typing as npt

from evidence import data, hand_choices
from evidence.plan import Plan, TaskName

Decide = Callable[
    [Sequence[str], npt.NDArray[np.float64], npt.NDArray[np.int64], Mapping[str, Any]], dict[str, float]
]
"""Joints' names, joints `(frame, joint, 3)` in the world in metres, their frames in the video, and the
episode's facts; returns by name of a decision 1 where it is right, else 0."""


@dataclass(frozen=True, slots=True)
class Task:
    """One task: its episodes, and what is counted of them."""

    params: Path
    """Settings that a new project starts with."""
    write_videos: Callable[[Plan, Path, int, Callable[[int], None]], None]
    """Writes `project/videos/<condition>` with its tables, in so many processes; what is there is kept."""
    told: tuple[str, ...]
    """Columns of `classes.csv` that a cue tells, which the gates read out."""
    decide: Decide


TASKS: Mapping[TaskName, Task] = {
    "hands": Task(
        Path(__file__).parent / "project" / "params.yaml",
        data.write_videos,
        ("color", "place"),
        hand_choices.decide,
    ),
    "memory_maze": Task(maze.PARAMS, maze.write_videos, ("cue",), maze.decide),
}
