"""Runs on a small cache with hand labels: hands that move evenly, seen by a camera that moves too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from thinkjepa.cache import FeatureCache, VideoLabels, WriteSession
from thinkjepa.stages.data.framing import Framing
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

JOINTS = ("rightHand", "rightThumbTip", "rightIndexFingerTip", "leftHand")
NUM_FRAMES = 24
FPS = 10.0
SMALL = TrainSettings(
    epochs=2,
    batch_size=8,
    clips_per_forward=3,
    depth=2,
    width=24,
    heads=2,
    fusion_width=16,
    head_width=16,
    learning_rate=3e-3,
    device="cpu",
)


def write_hand_labels(
    cache: Path, *, change: Callable[[VideoLabels], VideoLabels] = lambda item: item
) -> None:
    """Labels for every video of a cache; `change` is applied to each."""
    clips = FeatureCache.open(cache).select()
    videos = sorted({(clip.video, clip.video_digest) for clip in clips})
    with WriteSession(cache) as session:
        session.add_labels(
            change(hand_labels(video, digest, number)) for number, (video, digest) in enumerate(videos)
        )


def hand_labels(video: str, digest: str, number: int) -> VideoLabels:
    """Joints that move by a constant velocity of their own; the left hand is seen in every other video."""
    rng = np.random.default_rng(number)
    start, velocity = rng.normal(0, 0.2, (len(JOINTS), 3)), rng.normal(0, 0.1, (len(JOINTS), 3))
    times_s = np.arange(NUM_FRAMES)[:, None, None] / FPS
    confidences = np.full((NUM_FRAMES, len(JOINTS)), 0.5, dtype=np.float32)
    confidences[:, 3] = 0.9 if number % 2 else 0.0
    return VideoLabels(
        video_digest=digest,
        video=video,
        source="test",
        label_digest="first",
        reference_frame="world",
        joint_names=JOINTS,
        positions_m=(start + velocity * times_s).astype(np.float32),
        confidences=confidences,
        camera_poses=moving_camera(number),
    )


def moving_camera(number: int) -> npt.NDArray[np.float64]:
    """Poses `(frame, 4, 4)` of a camera that turns about the vertical and walks on."""
    poses = np.repeat(np.eye(4)[None], NUM_FRAMES, axis=0)
    angle = 0.1 * number + 0.02 * np.arange(NUM_FRAMES)
    poses[:, 0, 0], poses[:, 0, 2] = np.cos(angle), np.sin(angle)
    poses[:, 2, 0], poses[:, 2, 2] = -np.sin(angle), np.cos(angle)
    poses[:, :3, 3] = 0.01 * np.arange(NUM_FRAMES)[:, None]
    poses[:, 2, 3] -= 0.5
    return poses


TrainRun = Callable[..., Path]


@pytest.fixture
def encoder_framing() -> Framing | None:
    """The part of a frame that the encoder says it sees; modules may override it."""
    return None


@pytest.fixture
def labelled_cache(latent_cache: Callable[..., Path], encoder_framing: Framing | None) -> Path:
    """Sixteen videos of two clips, all with labels."""
    cache = latent_cache(framing=encoder_framing)
    write_hand_labels(cache)
    return cache


@pytest.fixture
def train_run(labelled_cache: Path, tmp_path: Path) -> TrainRun:
    """A function that trains a small run, `tmp_path/NAME`, and returns its folder.

    It reads the labelled cache unless `cache` names another.
    """

    def build(
        name: str = "run", *, split: SplitRule | None = None, cache: Path | None = None, **changes: object
    ) -> Path:
        train(
            cache or labelled_cache,
            tmp_path / name,
            replace(SMALL, **changes),
            split=split or SplitRule(group_by="video", test_fraction=0.4),
        )
        return tmp_path / name

    return build


@pytest.fixture
def relabelled_cache(latent_cache: Callable[..., Path]) -> Callable[..., Path]:
    """A function that makes a cache as `labelled_cache`, `change` applied to the labels of each video."""

    def build(name: str, change: Callable[[VideoLabels], VideoLabels]) -> Path:
        cache = latent_cache(name=name)
        write_hand_labels(cache, change=change)
        return cache

    return build
