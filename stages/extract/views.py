"""Frames as the frozen models are given them: a part cut out, scaled down, or scaled into a padded square."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as image_ops

from thinkjepa.stages.data.decoding.client import FrameStack
from thinkjepa.stages.data.framing import Box, Framing, fitted_size, seen_box


def as_video(frames: FrameStack) -> Tensor:
    """Decoded frames `(frame, height, width, 3)` as `(frame, 3, height, width)`, not copied."""
    return torch.from_numpy(np.require(frames, requirements="W")).permute(0, 3, 1, 2)


def viewed(frames: FrameStack, framing: Framing | None) -> FrameStack:
    """The part of frames that an encoder of this framing sees, or all of them where it is None.

    Only whole pixels inside the encoder's box: nothing that it does not see.
    """
    if framing is None:
        return frames
    box = seen_box(framing, width_px=frames.shape[2], height_px=frames.shape[1])
    left, top, right, bottom = box.inner_px()
    return frames[:, top:bottom, left:right]


def view_box(framing: Framing | None, *, width_px: int, height_px: int) -> Box:
    """The part of a frame that `viewed` gives, in shares of its width and height."""
    if framing is None:
        return Box(0.0, 0.0, 1.0, 1.0)
    left, top, right, bottom = seen_box(framing, width_px=width_px, height_px=height_px).inner_px()
    return Box(left / width_px, top / height_px, (right - left) / width_px, (bottom - top) / height_px)


def shrink(frames: FrameStack, *, short_side_px: int) -> Tensor:
    """Frames `(frame, 3, height, width)` uint8, scaled down to a short side, never up."""
    video = as_video(frames)
    if min(video.shape[-2:]) <= short_side_px:
        return video.contiguous()
    smaller: Tensor = image_ops.resize(
        video, [short_side_px], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    return smaller.contiguous()


def letterboxed(
    frames: FrameStack, size_px: tuple[int, int], *, fill: Sequence[int], resample: InterpolationMode
) -> Tensor:
    """Whole frames scaled into `size_px` (height, width), centred: `(frame, 3, height, width)` uint8.

    What they leave free has the color `fill`, red, green and blue from 0 to 255.
    """
    video = as_video(frames)
    height, width = fitted_size(*size_px, height_px=video.shape[-2], width_px=video.shape[-1])
    scaled = image_ops.resize(video, [height, width], interpolation=resample, antialias=True)
    canvas = torch.tensor(fill, dtype=torch.uint8).view(1, 3, 1, 1).repeat(len(video), 1, *size_px)
    top, left = (size_px[0] - height) // 2, (size_px[1] - width) // 2
    canvas[..., top : top + height, left : left + width] = scaled
    return canvas
