"""Episodes as the sample's thinker sees them: its frames before the split, and what there is to tell of them.

A folder holds `frames.npy`, `(episode, condition, frame, height, width, 3)` uint8, and `sights.jsonl`, a
line for each episode that is drawn: an interrupted drawing continues. Frames are not encoded as video.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from hands.generate import KEY_INTERVAL_S, PRESET, QP
from hands.motion import Motion, draw_episode
from hands.plan import CONDITIONS, FPS, PAD_HEIGHT_M, Pairs, Plan, episode_rng, task_of

from sample_models.thinker.words import Point, Sight
from thinkjepa.cache import ThinkJepaError
from thinkjepa.pipeline.sample.skeleton import Skeleton, camera_poses
from thinkjepa.pipeline.sample.videos import encode_video
from thinkjepa.stages.data.sampling import history_frames

Bytes = npt.NDArray[np.uint8]

Floats = npt.NDArray[np.float64]

FRAME_PX = 96

AFTER_SPLIT = 4
"""Frames of a video that is checked, for the future that extraction asks for."""

FRAMES_FILE, SIGHTS_FILE, SETTINGS_FILE = "frames.npy", "sights.jsonl", "drawing.json"


@dataclass(frozen=True, slots=True)
class Drawing:
    """Settings of a folder of sights."""

    seed: int
    num_episodes: int
    num_frames: int = 8
    size_px: int = FRAME_PX
    pairs: Pairs = "all"
    """`seen` leaves out the pairs of color and place that no training shows."""


@dataclass(frozen=True, slots=True)
class Sights:
    """Drawn episodes, each under every condition."""

    frames: Bytes
    """`(episode, condition, frame, height, width, 3)`, in the order of CONDITIONS; mapped, not in memory."""
    times_s: Sequence[tuple[float, ...]]
    """Times of each episode's frames."""
    sights: Sequence[Sight]


def draw_sights(
    folder: Path, drawing: Drawing, *, workers: int, advance: Callable[[int], None] = lambda count: None
) -> Sights:
    """Draw what the folder lacks, after `hands.generate.check_renderable`, and open it.

    Raises ThinkJepaError for a folder of another drawing.
    """
    _claim(folder, drawing)
    done = _read_lines(folder)
    advance(len(done))
    lacking = [number for number in range(drawing.num_episodes) if number not in done]
    # Fresh processes: a GL library's state does not survive a fork.
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(max(1, min(workers, len(lacking))), mp_context=context) as pool,
        (folder / SIGHTS_FILE).open("a", encoding="utf-8") as file,
    ):
        for line in pool.map(partial(_draw_into, folder, drawing), lacking, chunksize=4):
            file.write(json.dumps(line) + "\n")
            file.flush()
            advance(1)
    return open_sights(folder)


def open_sights(folder: Path) -> Sights:
    """The sights of a folder that is completely drawn."""
    lines = _read_lines(folder)
    numbers = sorted(lines)
    return Sights(
        frames=np.load(folder / FRAMES_FILE, mmap_mode="r"),
        times_s=[tuple(lines[number]["times_s"]) for number in numbers],
        sights=[Sight.from_json(lines[number]["sight"]) for number in numbers],
    )


def write_videos(folder: Path, number: int, *, seed: int) -> tuple[int, Sight]:
    """Write `<condition>/<number>.mp4` as the sample's are, up to a little after the split.

    Returns the split frame, and what there is to tell.
    """
    from hands.render import draw_frames

    skeleton = _skeleton()
    plan, motion = draw_episode(episode_rng(seed, number), task_of(number), skeleton)
    split = plan.timing.split_frame
    shown = range(split + AFTER_SPLIT)
    drawn = draw_frames(plan, motion, skeleton, conditions=CONDITIONS, size_px=FRAME_PX, chosen=shown)
    for condition, frames in drawn.items():
        path = folder / condition / f"{number}.mp4"
        encode_video(path, frames, fps=FPS, qp=QP, preset=PRESET, key_interval_s=KEY_INTERVAL_S)
    return split, _sight(plan, motion, skeleton)


def _claim(folder: Path, drawing: Drawing) -> None:
    """Make a folder with room for all frames, or find the one that was begun."""
    settings = folder / SETTINGS_FILE
    text = json.dumps({**asdict(drawing), "fps": FPS, "conditions": CONDITIONS}, indent=1) + "\n"
    if settings.exists():
        if settings.read_text(encoding="utf-8") != text:
            raise ThinkJepaError(
                f"{folder} holds frames of other settings: remove it, or name another folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    size = (drawing.size_px, drawing.size_px, 3)
    shape = (drawing.num_episodes, len(CONDITIONS), drawing.num_frames, *size)
    np.lib.format.open_memmap(folder / FRAMES_FILE, mode="w+", dtype=np.uint8, shape=shape)
    (folder / SIGHTS_FILE).write_text("")
    settings.write_text(text, encoding="utf-8")


def _read_lines(folder: Path) -> dict[int, dict[str, Any]]:
    """Lines of SIGHTS_FILE by episode. What an interruption left unfinished of the last one is removed."""
    path = folder / SIGHTS_FILE
    whole, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
    if rest:
        path.write_text(whole + "\n" if whole else "", encoding="utf-8")
    return {line["number"]: line for line in map(json.loads, whole.splitlines())}


def _draw_into(folder: Path, drawing: Drawing, number: int) -> dict[str, Any]:
    from hands.render import draw_frames

    skeleton = _skeleton()
    plan, motion = draw_episode(
        episode_rng(drawing.seed, number), task_of(number), skeleton, pairs=drawing.pairs
    )
    split = plan.timing.split_frame
    times_s = np.arange(split) / FPS
    chosen = history_frames(times_s, split, num_frames=drawing.num_frames)
    drawn = draw_frames(
        plan, motion, skeleton, conditions=CONDITIONS, size_px=drawing.size_px, chosen=chosen.tolist()
    )
    frames = np.load(folder / FRAMES_FILE, mmap_mode="r+")
    frames[number] = np.stack([drawn[condition] for condition in CONDITIONS])
    frames.flush()
    sight = _sight(plan, motion, skeleton)
    return {"number": number, "times_s": times_s[chosen].tolist(), "sight": sight.to_json()}


def _sight(plan: Plan, motion: Motion, skeleton: Skeleton) -> Sight:
    last = plan.timing.split_frame - 1
    camera = camera_poses(motion.camera[last : last + 1])[0]
    hand_m = skeleton.joint_poses(motion.hand[last : last + 1])[0, :, :3, 3].mean(axis=0)
    points_m = [
        *(thing.center_m for thing in plan.things),
        *((*pad, PAD_HEIGHT_M) for pad in plan.pads_m),
        hand_m,
    ]
    points = _points(np.array(points_m), camera, vertical_fov=plan.look.vertical_fov)
    num_things = len(plan.things)
    return Sight(
        names=tuple(thing.name for thing in plan.things),
        things=tuple(points[:num_things]),
        pads=tuple(points[num_things:-1]),
        place=plan.place,
        hand=points[-1],
    )


def _points(points_m: Floats, camera: Floats, *, vertical_fov: float) -> list[Point]:
    """Points `(n, 3)` of the world in the square picture of a camera `(4, 4)`, camera to world."""
    right, down, ahead = ((points_m - camera[:3, 3]) @ camera[:3, :3]).T
    focal = 0.5 / np.tan(vertical_fov / 2)
    shares = np.stack([0.5 + focal * right / ahead, 0.5 + focal * down / ahead], axis=1)
    return [(x, y) for x, y in shares.round(4).tolist()]


@cache
def _skeleton() -> Skeleton:
    from hands.scene import read_skeleton

    return read_skeleton()
