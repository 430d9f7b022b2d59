"""New videos for trained runs: their making, a tiny training, and the frames of what was drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np

from thinkjepa.cache import VideoLabels, file_digest
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

SIZE = (160, 128)
FPS, NUM_FRAMES = 10, 40
TINY = TrainSettings(
    epochs=1,
    batch_size=4,
    depth=2,
    width=24,
    heads=2,
    fusion_width=16,
    head_width=32,
    device="cpu",
    latent_target="latents",
)
"""One step of it. Changes start at zero: guidance would not move them before the second step."""


def train_run(cache: Path, out: Path, *, rule: SplitRule | None = None, **settings: Any) -> Path:
    train(cache, out, replace(TINY, **settings), split=rule or SplitRule(group_by="video"))
    return out


def drifting_hand(path: Path) -> VideoLabels:
    """Two joints that move evenly, in every frame of a video."""
    times_s = np.arange(NUM_FRAMES)[:, None, None] / FPS
    return VideoLabels(
        "test",
        "world",
        ("rightHand", "rightThumbTip"),
        (np.array([[0.0, 0.0, 0.5], [0.02, 0.0, 0.5]]) + 0.03 * times_s).astype(np.float32),
        np.ones((NUM_FRAMES, 2), dtype=np.float32),
        None,
        video=path.name,
        video_digest=file_digest(path),
        label_digest="drifting",
        intrinsics=np.array([[160.0, 0, 80], [0, 160, 64], [0, 0, 1]]),
    )


def lossless_video(path: Path, *, change: slice | None) -> Path:
    """Noise in a codec that keeps every bit and every frame by itself; frames of `change` are inverted."""
    rng = np.random.default_rng(0)
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=FPS)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(NUM_FRAMES):
            pixels = rng.integers(0, 256, (SIZE[1] * 3 // 2, SIZE[0]), dtype=np.uint8)
            if change is not None and number in range(NUM_FRAMES)[change]:
                pixels = 255 - pixels
            frame = av.VideoFrame.from_ndarray(pixels, format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(path) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
