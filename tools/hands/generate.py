"""Render episodes into a folder: videos and the pose archive, in as many processes as there are cores."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hands.archive import write_archive
from hands.motion import Motion, draw_episode
from hands.plan import (
    FPS,
    HELD_OUT_PAIRS,
    PAD_HEIGHT_M,
    PLACES,
    TASKS,
    Condition,
    Pairs,
    Plan,
    episode_rng,
    task_of,
)
from thinkjepa.cache import ThinkJepaError
from thinkjepa.pipeline.sample.episodes import POSES_FILE, Y_UP, Episode, Facts
from thinkjepa.pipeline.sample.skeleton import Skeleton
from thinkjepa.pipeline.sample.videos import encode_video

Floats = npt.NDArray[np.float64]

QP, PRESET, KEY_INTERVAL_S = 30, "veryslow", 4.0
"""About 28 kB an episode, fingers are still distinct."""

MIN_SIZE_PX = 64

REMEDY = (
    "pip install 'thinkjepa[sample]', and a GL library without a screen: "
    "apt-get install libegl1 libgl1-mesa-dri, or libosmesa6"
)

GL_KINDS = ("egl", "osmesa")

GL_PROBE = "import mujoco; mujoco.GLContext(8, 8).make_current()"


class RenderError(ThinkJepaError):
    """Episodes cannot be rendered here; the message says what is missing."""


def check_renderable(*, size_px: int) -> None:
    """Raise RenderError where packages or a GL library are missing, or the size cannot be encoded.

    Chooses the GL library for this process and those it starts (MUJOCO_GL), where none is chosen.
    """
    if size_px % 2 or size_px < MIN_SIZE_PX:
        raise RenderError(f"a video of {size_px} px: the side must be even and at least {MIN_SIZE_PX} px")
    missing = [name for name in ("mujoco", "gymnasium_robotics") if find_spec(name) is None]
    if missing:
        raise RenderError(f"rendering needs {' and '.join(missing)}: {REMEDY}")
    chosen = os.environ.get("MUJOCO_GL")
    for kind in (chosen,) if chosen else GL_KINDS:
        environment = {**os.environ, "MUJOCO_GL": kind}
        probe = subprocess.run(
            [sys.executable, "-c", GL_PROBE], env=environment, capture_output=True, check=False
        )
        if probe.returncode == 0:
            os.environ["MUJOCO_GL"] = kind
            return
    raise RenderError(f"mujoco finds no GL library ({chosen or ', '.join(GL_KINDS)}): {REMEDY}")


def render_episodes(
    folders: Mapping[Condition, Path],
    *,
    numbers: Sequence[int],
    seed: int,
    size_px: int,
    workers: int,
    pairs: Pairs = "all",
    advance: Callable[[int], None] = lambda count: None,
) -> list[Path]:
    """Write `<task>/<i>.mp4` and `poses.npz` into the folder of each condition, after `check_renderable`.

    Returns the files written. Episode i depends on the seed, on `pairs` and on i alone. The same
    seed gives the same bytes of poses. Those of videos depend on the GL library and the encoder too.
    """
    render = partial(render_episode, folders, seed=seed, size_px=size_px, pairs=pairs)
    episodes: dict[Condition, list[Episode]] = {condition: [] for condition in folders}
    # Fresh processes: a GL library's state does not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(numbers)), mp_context=context) as pool:
        for rendered in pool.map(render, numbers):
            for condition, episode in rendered.items():
                episodes[condition].append(episode)
            advance(1)
    written = []
    for condition, folder in folders.items():
        write_archive(folder / POSES_FILE, _skeleton(), episodes[condition])
        written += [folder / POSES_FILE, *(folder / episode.facts.video for episode in episodes[condition])]
    return written


def render_episode(
    folders: Mapping[Condition, Path], number: int, *, seed: int, size_px: int, pairs: Pairs = "all"
) -> dict[Condition, Episode]:
    """Render one episode's video into the folder of each condition, and return its poses and facts."""
    from hands.render import draw_frames

    skeleton = _skeleton()
    plan, motion = draw_episode(episode_rng(seed, number), task_of(number), skeleton, pairs=pairs)
    video = f"{plan.task}/{number // len(TASKS)}.mp4"
    frames = draw_frames(plan, motion, skeleton, conditions=tuple(folders), size_px=size_px)
    focal_px = size_px / 2 / np.tan(plan.look.vertical_fov / 2)
    middle_px = size_px / 2
    intrinsics = np.array([[focal_px, 0, middle_px], [0, focal_px, middle_px], [0, 0, 1.0]])
    episodes = {}
    for condition, folder in folders.items():
        path = folder / video
        encode_video(path, frames[condition], fps=FPS, qp=QP, preset=PRESET, key_interval_s=KEY_INTERVAL_S)
        facts = _facts(plan, motion, video=video, condition=condition, seed=seed, number=number)
        episodes[condition] = Episode(facts, motion.hand, motion.camera, intrinsics)
    return episodes


@cache
def _skeleton() -> Skeleton:
    from hands.scene import read_skeleton

    return read_skeleton()


def _facts(plan: Plan, motion: Motion, *, video: str, condition: Condition, seed: int, number: int) -> Facts:
    timing = plan.timing
    grasp_frame, release_frame = timing.put.held_frames
    places_m = [
        _y_up(np.array([*pad_m, plan.things[0].half_sizes_m[2] + PAD_HEIGHT_M])) for pad_m in plan.pads_m
    ]
    return Facts(
        video=video,
        task=plan.task,
        description=plan.description,
        verb=plan.verb,
        object=plan.things[0].name,
        objects=tuple(thing.name for thing in plan.things),
        place=PLACES[plan.place],
        objects_m=tuple(_y_up(thing.center_m) for thing in plan.things),
        places_m=tuple(places_m),
        condition=condition,
        card_frames=timing.card_frames(condition),
        split_frame=timing.split_frame,
        grasp_frame=grasp_frame,
        release_frame=release_frame,
        back_frames=timing.back.held_frames,
        seen_pair=plan.pair not in HELD_OUT_PAIRS,
        num_frames=len(motion.hand),
        fps=FPS,
        seed=seed,
        episode=number,
    )


def _y_up(position_m: Floats) -> tuple[float, float, float]:
    x, y, z = (Y_UP[:3, :3] @ position_m).round(5).tolist()
    return x, y, z
