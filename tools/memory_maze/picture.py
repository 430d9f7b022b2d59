"""Pictures of what the walker has before it: MiniGrid's own drawing of the maze, cut and turned smoothly.

MiniGrid draws one picture a step. Here the whole maze is drawn once, and each frame is cut out of it at the
walker's interpolated pose. Walls hide nothing, as with MiniGrid's setting see_through_walls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from memory_maze.walk import VIEW_CELLS, Condition, Walk

if TYPE_CHECKING:
    from minigrid.envs.memory import MemoryEnv

Pixels = npt.NDArray[np.uint8]

TILE_PX = 28

SMOOTHING = 2
"""Pixels of the cut for each of a frame, along both sides."""


def draw_frames(walk: Walk, condition: Condition, *, size_px: int) -> Pixels:
    """Frames `(frame, size_px, size_px, 3)` of an episode under a condition."""
    chart = Image.fromarray(draw_chart(walk.maze, walk.cue_cell, condition))
    walker = _walker(size_px)
    frames = np.empty((len(walk.cells), size_px, size_px, 3), np.uint8)
    poses = np.column_stack([walk.cells, walk.headings])
    for number, pose in enumerate(poses):
        if number and (pose == poses[number - 1]).all():
            frames[number] = frames[number - 1]
            continue
        cut = chart.transform(
            (size_px * SMOOTHING,) * 2,
            Image.Transform.AFFINE,
            _chart_of_picture(pose, size_px * SMOOTHING),
            Image.Resampling.BILINEAR,
        ).reduce(SMOOTHING)
        cut.paste(walker, mask=walker)
        frames[number] = np.asarray(cut.convert("RGB"))
    return frames


def draw_chart(maze: MemoryEnv, cue_cell: tuple[int, int], condition: Condition) -> Pixels:
    """The whole maze, `TILE_PX` a cell, without a walker. Under `no-cue` a box stands in for the cue."""
    from minigrid.core.world_object import Box

    grid = maze.grid.copy()
    if condition == "no-cue":
        grid.set(*cue_cell, Box("green"))
    return np.asarray(grid.render(TILE_PX, (-1, -1)), np.uint8)


def _chart_of_picture(pose: npt.NDArray[np.float64], side_px: int) -> tuple[float, ...]:
    """The map from the picture's pixels to the chart's, as Pillow takes it: rows of a 2 x 3 matrix.

    The walker is in the middle of the picture's lowest row of cells and looks up.
    """
    x, y, heading = pose
    right = np.array([-np.sin(heading * np.pi / 2), np.cos(heading * np.pi / 2)])
    ahead = np.array([right[1], -right[0]])
    scale = VIEW_CELLS / side_px * TILE_PX
    middle = (np.array([x, y]) + 0.5) * TILE_PX
    start = middle + TILE_PX * ((VIEW_CELLS - 0.5) * ahead - VIEW_CELLS / 2 * right)
    across, down = scale * right, -scale * ahead
    return across[0], down[0], start[0], across[1], down[1], start[1]


def _walker(size_px: int) -> Image.Image:
    """MiniGrid's red triangle at its place in the picture, all else transparent."""
    from minigrid.core.grid import Grid

    tile = np.asarray(Grid.render_tile(None, agent_dir=3, tile_size=TILE_PX), np.uint8)
    is_red = (tile[..., 0] > 2 * tile[..., 1].astype(int)) & (tile[..., 0] > 100)
    picture = np.zeros((VIEW_CELLS * TILE_PX,) * 2 + (4,), np.uint8)
    left = VIEW_CELLS // 2 * TILE_PX
    picture[-TILE_PX:, left : left + TILE_PX] = np.dstack([tile, 255 * is_red.astype(np.uint8)])
    return Image.fromarray(picture).resize((size_px, size_px), Image.Resampling.BOX)
