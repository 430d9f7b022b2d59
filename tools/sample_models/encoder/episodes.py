"""Episodes of the simulated hand as pictures and joints in memory, drawn once and kept in a folder.

A file an episode, so that an interrupted drawing continues. Nothing is encoded as video: that costs more time
than to draw, and the encoder's check reads decoded video where it matters.

Shape letters: E episodes, F frames, J joints.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from hands.motion import draw_episode
from hands.plan import CONDITIONS, FPS, PLACES, Condition, Pairs, episode_rng, task_of

from thinkjepa.cache import ThinkJepaError
from thinkjepa.pipeline.sample.skeleton import Skeleton, camera_poses

Bytes = npt.NDArray[np.uint8]

Floats = npt.NDArray[np.float64]

DENSE_FPS = 10

STRIDE = FPS // DENSE_FPS
"""Frames of an episode from one drawn frame to the next."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """Settings of a set of episodes. Another seed is another set, of which no episode is in this one."""

    seed: int
    size_px: int
    conditions: tuple[Condition, ...] = CONDITIONS
    """In turn, from episode to episode."""
    pairs: Pairs = "all"
    """Whether pairs of color and place that are held out of training are among them."""
    before: int | None = None
    """Drawn frames before the split. None for all."""
    after: int | None = None
    """Drawn frames from the split on. None for all."""


@dataclass(frozen=True, slots=True)
class DrawnEpisode:
    """Frames every tenth of a second, the last one before the split among them."""

    pictures: Bytes
    """`(F, size, size, 3)`"""
    joints_m: Floats
    """`(F, J, 3)` in the world, metres."""
    cameras: Floats
    """`(F, 4, 4)`, camera to world: x right, y down, z forward."""
    split: int
    """Index of the first drawn frame after the split."""
    color: str
    place: str


def draw_episodes(
    folder: Path,
    drawing: Drawing,
    *,
    num_episodes: int,
    workers: int,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Path]:
    """Draw what the folder lacks of the first `num_episodes`; the files of all of them, in their order.

    Needs `hands.generate.check_renderable`. Raises ThinkJepaError for a folder of another drawing.
    """
    claim(folder, drawing)
    paths = [folder / f"{number:05}.npz" for number in range(num_episodes)]
    lacking = [number for number, path in enumerate(paths) if not path.exists()]
    advance(num_episodes - len(lacking))
    context = multiprocessing.get_context("spawn")  # a GL library's state does not survive a fork
    with ProcessPoolExecutor(max(1, min(workers, len(lacking))), mp_context=context) as pool:
        for _ in pool.map(partial(_draw_into, folder, drawing), lacking):
            advance(1)
    return paths


def claim(folder: Path, drawing: Drawing) -> None:
    """Write down of which drawing a folder is, and refuse one of another."""
    path, told = folder / "drawing.json", {**asdict(drawing), "fps": FPS}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(told, indent=1) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ThinkJepaError(f"{str(folder)!r} holds episodes of other settings: give another folder")
    path.write_text(text, encoding="utf-8")


def read_episode(path: Path) -> DrawnEpisode:
    """Read a file of `draw_episodes`."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("pictures", "joints_m", "cameras")}
        facts = json.loads(str(file["facts"]))
    return DrawnEpisode(**arrays, **facts)


def _draw_into(folder: Path, drawing: Drawing, number: int) -> None:
    episode = draw(drawing, number)
    facts = {name: getattr(episode, name) for name in ("split", "color", "place")}
    partial_path = folder / f".{number:05}-{os.getpid()}.npz"
    np.savez(
        partial_path,
        allow_pickle=False,
        pictures=episode.pictures,
        joints_m=episode.joints_m,
        cameras=episode.cameras,
        facts=np.array(json.dumps(facts)),
    )
    partial_path.replace(folder / f"{number:05}.npz")


def draw(drawing: Drawing, number: int) -> DrawnEpisode:
    """Draw an episode, which depends on the drawing and its number alone."""
    from hands.render import draw_frames

    skeleton = _skeleton()
    rng = episode_rng(drawing.seed, number)
    plan, motion = draw_episode(rng, task_of(number), skeleton, pairs=drawing.pairs)
    split = plan.timing.split_frame
    frames = drawn_frames(len(motion.hand), split, before=drawing.before, after=drawing.after)
    condition = drawing.conditions[number % len(drawing.conditions)]
    pictures = draw_frames(
        plan, motion, skeleton, conditions=[condition], size_px=drawing.size_px, chosen=frames
    )
    return DrawnEpisode(
        pictures=pictures[condition],
        joints_m=skeleton.joint_poses(motion.hand[frames])[..., :3, 3],
        cameras=camera_poses(motion.camera[frames]),
        split=sum(frame < split for frame in frames),
        color=plan.things[0].color,
        place=PLACES[plan.place],
    )


def drawn_frames(num_frames: int, split: int, *, before: int | None, after: int | None) -> list[int]:
    """Frames every tenth of a second around the last one before the split, which is one of them."""
    observed = list(range(split - 1, -1, -STRIDE))[:before][::-1]
    future = list(range(split - 1 + STRIDE, num_frames, STRIDE))[:after]
    return observed + future


@cache
def _skeleton() -> Skeleton:
    from hands.scene import read_skeleton

    return read_skeleton()
