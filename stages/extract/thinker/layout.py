"""The place and time of a thinker's visual tokens: frames in order, and in each the grid of the tower.

    tokens of a prompt -> groups (a frame, or the frames that a tower merges) -> rows and columns of a group

Positions are `(time, span, height, width)`: seconds before the split of the middle of what a token or a slot
averages, the seconds from its first frame to its last, and its center in the whole video frame, 0 to 1 from
the top left corner. Height and width are NaN where it is all of the frame.

Shape letters: L layers, N visual tokens, G groups, P places (row-major), D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from thinkjepa.stages.data.framing import Box, processor_framing, seen_box

WHOLE = Box(0.0, 0.0, 1.0, 1.0)
"""All of a frame, in shares of its width and height."""

SQUARE_GRIDS = ("gemma3", "idefics3", "llava", "smolvlm")
"""Families, by `model_type`, whose tokens of an image are a square grid, row by row, of the image stretched
or cut to a square. Of others nothing tells whether a square number of tokens is a grid."""

EVERYWHERE = (math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class VisualLayout:
    """The visual tokens of a prompt: their groups in the order of time, and the grid inside each of them."""

    sizes: tuple[int, ...]
    """Tokens of each group."""
    spans_s: tuple[tuple[float, float], ...]
    """Times of the first and the last frame of each group."""
    grid: tuple[int, int] | None
    """Rows and columns of each group. None where its tokens lie on no known grid."""
    view: Box
    """The part of the video's frame that the grid covers, in shares of its width and height."""
    frame_px: tuple[int, int] = (0, 0)
    """Width and height of the video's frame, 0 where they are not known."""

    def num_slots(self, segments: int) -> int:
        """Slots of a clip: each place of the grid once a segment, then each group."""
        return len(self._segments(segments)) * len(self._places) + len(self.sizes)

    def slots(self, visual_LND: Tensor, *, segments: int) -> Tensor:
        """Means of visual states, `(layer, slot, dim)` float32.

        First each place of the grid averaged over the groups of a segment, segment after segment. Then each
        group averaged over its places. Groups are divided evenly into `segments`, at most one for each.
        """
        groups = torch.split(visual_LND.float(), list(self.sizes), dim=1)
        of_time = []
        if self.grid is not None:
            states_LGPD = torch.stack(groups, dim=1)
            of_time = [states_LGPD[:, part].mean(dim=1) for part in self._segments(segments)]
        of_space = torch.stack([group.mean(dim=1) for group in groups], dim=1)
        return torch.cat([*of_time, of_space], dim=1)

    def slot_positions(self, split_time_s: float, *, segments: int) -> Tensor:
        """Positions of the slots, `(slot, 4)` float32."""
        times = [
            _before(split_time_s, self.spans_s[part][0][0], self.spans_s[part][-1][1])
            for part in self._segments(segments)
        ]
        of_places = [(*time, *place) for time in times for place in self._places]
        of_groups = [(*_before(split_time_s, *span), *EVERYWHERE) for span in self.spans_s]
        return _as_positions([*of_places, *of_groups])

    def token_positions(self, split_time_s: float) -> Tensor:
        """Positions of the visual tokens, `(token, 4)` float32."""
        rows = []
        for size, span in zip(self.sizes, self.spans_s, strict=True):
            time = _before(split_time_s, *span)
            rows += [(*time, *place) for place in self._places or [EVERYWHERE] * size]
        return _as_positions(rows)

    @property
    def _places(self) -> list[tuple[float, float]]:
        """Centers of the grid's places, height and width, row by row. Empty without a grid."""
        rows, columns = self.grid or (0, 0)
        return [
            (
                self.view.top + (row + 0.5) / rows * self.view.height,
                self.view.left + (column + 0.5) / columns * self.view.width,
            )
            for row in range(rows)
            for column in range(columns)
        ]

    def _segments(self, segments: int) -> list[slice]:
        """Groups of each segment, none without a grid."""
        if self.grid is None:
            return []
        number = min(segments, len(self.sizes))
        edges = [len(self.sizes) * index // number for index in range(number + 1)]
        return [slice(start, stop) for start, stop in pairwise(edges)]


def find_layout(
    inputs: Mapping[str, Tensor],
    *,
    visual_ids: frozenset[int],
    times_s: Sequence[float],
    view: Box,
    frame_px: tuple[int, int],
    processor: Any,
    model_type: str,
) -> VisualLayout:
    """The layout of a prompt's visual tokens, from the model's own inputs.

    Groups and grid are those of `*_grid_thw` where the processor gives it. Else a group is a frame: a run of
    visual tokens where there are as many runs as frames, or an equal part of them all.
    """
    is_visual = [token in visual_ids for token in inputs["input_ids"][0].tolist()]
    found = _grid_groups(inputs, processor, num_visual=sum(is_visual))
    if found is None:
        sizes, grid = _frame_sizes(is_visual, len(times_s)), None
        side = math.isqrt(sizes[0]) if sizes else 0
        if model_type in SQUARE_GRIDS and side and set(sizes) == {side * side}:
            grid = (side, side)
    else:
        sizes, grid = found
    step = math.ceil(len(times_s) / max(1, len(sizes)))
    return VisualLayout(
        sizes=tuple(sizes),
        spans_s=tuple(
            (times_s[min(start, len(times_s) - 1)], times_s[min(start + step, len(times_s)) - 1])
            for start in range(0, step * len(sizes), step)
        ),
        grid=grid,
        view=view,
        frame_px=frame_px,
    )


def part_of_frame(box: Box, inner: Box) -> Box:
    """A part of a part of a frame, both in shares, as a part of the frame."""
    return Box(
        box.left + inner.left * box.width,
        box.top + inner.top * box.height,
        inner.width * box.width,
        inner.height * box.height,
    )


def cut_by_processor(part: Any, *, width_px: int, height_px: int) -> Box:
    """The part of a frame that a processor's visual part keeps, in shares: all of it, or the middle."""
    if not getattr(part, "do_center_crop", False):
        return WHOLE
    box = seen_box(processor_framing(part), width_px=width_px, height_px=height_px)
    return Box(box.left / width_px, box.top / height_px, box.width / width_px, box.height / height_px)


def _grid_groups(
    inputs: Mapping[str, Tensor], processor: Any, *, num_visual: int
) -> tuple[list[int], tuple[int, int]] | None:
    """Group sizes and grid by the processor's own count of patches, None where it gives none."""
    for kind in ("video", "image"):
        if f"{kind}_grid_thw" in inputs:
            merge = int(getattr(getattr(processor, f"{kind}_processor", None), "merge_size", 1))
            grids = inputs[f"{kind}_grid_thw"].tolist()
            rows, columns = grids[0][1] // merge, grids[0][2] // merge
            sizes = [rows * columns] * sum(steps for steps, _, _ in grids)
            return (sizes, (rows, columns)) if sum(sizes) == num_visual else None
    return None


def _frame_sizes(is_visual: Sequence[bool], num_frames: int) -> list[int]:
    """Visual tokens of each frame."""
    runs: list[int] = []
    before = False
    for visual in is_visual:
        if visual:
            runs = [*runs[:-1], runs[-1] + 1] if before else [*runs, 1]
        before = visual
    if len(runs) == num_frames:
        return runs
    total, number = sum(runs), min(sum(runs), num_frames)
    edges = [total * index // number for index in range(number + 1)] if number else [0]
    return [stop - start for start, stop in pairwise(edges)]


def _before(split_time_s: float, start_s: float, end_s: float) -> tuple[float, float]:
    """Seconds before the split of the middle of two times, and the seconds between them."""
    return split_time_s - (start_s + end_s) / 2, end_s - start_s


def _as_positions(rows: Sequence[tuple[float, ...]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
