"""The memory maze as a task of the evidence: settings, episodes, and the side that a prediction takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from memory_maze.generate import JOINT, write_parts
from memory_maze.walk import CONDITIONS
from thinkjepa.pipeline.sample.expand import FACTS_FILE

if TYPE_CHECKING:
    from evidence.plan import Plan

PARAMS = Path(__file__).parent / "params.yaml"

MIDDLE_M = 0.001
"""Difference of the distances to both ends below which no side is taken."""


def write_videos(plan: Plan, project: Path, workers: int, advance: Callable[[int], None]) -> None:
    """Write `project/videos/<condition>`, all or none, unless the episodes of the plan are there."""
    parts = {name: (part.episodes, part.seed) for name, part in plan.parts.items()}
    conditions = [condition for condition in CONDITIONS if condition in plan.conditions]
    videos, unfinished = project / "videos", project / "videos" / ".unfinished"
    if all(_holds(videos / condition / FACTS_FILE, parts) for condition in conditions):
        advance(sum(part.episodes for part in plan.parts.values()))
        return
    shutil.rmtree(unfinished, ignore_errors=True)
    write_parts(unfinished, parts, conditions=conditions, workers=workers, advance=advance)
    for condition in conditions:
        shutil.rmtree(videos / condition, ignore_errors=True)
        (unfinished / condition).replace(videos / condition)
    unfinished.rmdir()


def _holds(facts_file: Path, parts: Mapping[str, tuple[int, int]]) -> bool:
    if not facts_file.is_file():
        return False
    facts = json.loads(facts_file.read_text(encoding="utf-8"))
    there = {(video, fact["seed"]) for video, fact in facts.items()}
    wanted = {
        (f"{part}/{number}.mp4", seed) for part, (size, seed) in parts.items() for number in range(size)
    }
    return there == wanted


def decide(
    joints: Sequence[str],
    world_m: npt.NDArray[np.float64],
    frames: npt.NDArray[np.int64],
    fact: Mapping[str, Any],
) -> dict[str, float]:
    """1 where positions `(frame, joint, 3)` of the walker end on the right side of the fork, else 0.

    The side is that of the nearer end, in the last frame. Who stays in the middle takes none, and gets 1/2.
    """
    last_m = world_m[int(frames.argmax()), joints.index(JOINT)]
    to_left, to_right = np.linalg.norm(np.array(fact["ends_m"]) - last_m, axis=1)
    if abs(to_left - to_right) < MIDDLE_M:
        return {"side": 0.5}
    return {"side": float(("left" if to_left < to_right else "right") == fact["side"])}
