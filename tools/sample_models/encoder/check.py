"""Read-out of an encoder's latents: hands off true future ones, the card off observed ones.

A forecast of latents can be no better than what the *true* latents tell. The trajectory head of the project,
which is given the observed poses as in every run, is trained on the true future latents of some episodes and
measured on others, that neither it nor the encoder has met. Next to it: an encoder before its training, the
pixels themselves, the ridge on the observed poses, and the last pose held.

Shape letters: B clips, F frames, T latent steps, P patches, D latent dim, K frames of a step, J joints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sample_models.encoder.episodes import DENSE_FPS, DrawnEpisode
from sample_models.linear_readout import share_read_right
from thinkjepa.stages.data.trajectories import Positions, Trajectory, to_camera
from thinkjepa.stages.evaluate.details.latents import LatentSpread
from thinkjepa.stages.extract.encoder.base import VideoEncoder
from thinkjepa.stages.train.data.poses import ObservedPoses, TrajectoryBatch, observed_poses
from thinkjepa.stages.train.data.ridge import fit_ridge
from thinkjepa.stages.train.fit.losses import trajectory_error
from thinkjepa.stages.train.model.config import HeadShape, LatentGrid, ModelShape, TrunkShape
from thinkjepa.stages.train.model.head import TrajectoryHead
from thinkjepa.stages.train.model.ridge import RidgeFit
from thinkjepa.stages.train.model.trunk import initialize
from thinkjepa.stages.train.randomness import epoch_order, named_generator
from thinkjepa.stages.train.settings import TrainSettings

OBSERVED, FUTURE, TUBELET = 4, 16, 2

ENCODED_AT_ONCE = 16

SETTINGS = TrainSettings()
"""The project's defaults, by which the head is trained."""


MOST_OF_HELD, LEAST_READ = 1 / 3, 0.9
"""What is good enough: the largest share of the last pose's error, the least share of cards read right."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Numbers of clips: the first ones train, then come those for validation, then those of the test."""

    num_validation: int
    num_test: int

    def num_train(self, num_clips: int) -> int:
        return num_clips - self.num_validation - self.num_test


@dataclass(frozen=True, slots=True)
class Clips:
    """Latents and joints of some clips."""

    observed: Tensor
    """`(B, T, P, D)` of the observed window."""
    future: Tensor
    """`(B, T, P, D)` of the future one."""
    joints: TrajectoryBatch

    def only(self, chosen: slice | Sequence[int]) -> Clips:
        return Clips(self.observed[chosen], self.future[chosen], only(self.joints, chosen))

    def trajectories(self, clip_ids: Sequence[int], device: torch.device) -> TrajectoryBatch:
        """Joints of clips, as `fit_ridge` asks for them."""
        return only(self.joints, list(clip_ids)).to(device)


@dataclass(frozen=True, slots=True)
class Distance:
    """Mean distance of joints from the true ones, over clips, metres."""

    mean_m: float
    """Over all future steps."""
    last_step_m: float


def only(joints: TrajectoryBatch, chosen: slice | Sequence[int]) -> TrajectoryBatch:
    """The joints of chosen clips."""
    poses = joints.poses
    return TrajectoryBatch(
        ObservedPoses(poses.positions_m[chosen], poses.known[chosen], poses.times_s[chosen]),
        joints.future_m[chosen],
        joints.future_confidence[chosen],
    )


def joints_of(episodes: Sequence[DrawnEpisode]) -> TrajectoryBatch:
    """Joints in the camera frame of the last observed frame, as every run reads them."""
    cut = [_trajectory(episode) for episode in episodes]
    times_s = np.arange(OBSERVED) / DENSE_FPS
    future_m = torch.from_numpy(np.stack([item.future_m[0] for item in cut]))
    future_m = future_m.view(len(cut), FUTURE // TUBELET, TUBELET, *future_m.shape[2:])
    poses = observed_poses(cut, [times_s] * len(cut))
    return TrajectoryBatch(poses, future_m, torch.ones(future_m.shape[:-1]))


def _trajectory(episode: DrawnEpisode) -> Trajectory:
    camera = episode.cameras[episode.split - 1]
    joints_m = to_camera(episode.joints_m.astype(np.float32), camera)
    parts = np.split(joints_m[episode.split - OBSERVED :], [OBSERVED, OBSERVED + FUTURE])[:2]
    known: list[Positions] = [np.ones(part.shape[:-1], np.float32) for part in parts]
    return Trajectory(parts[0], known[0], parts[1][None], known[1][None], camera)


def windows_of(episodes: Sequence[DrawnEpisode]) -> tuple[list[Tensor], list[Tensor]]:
    """Observed and future pictures `(F, 3, S, S)` uint8 of each episode."""
    videos = [torch.from_numpy(item.pictures).permute(0, 3, 1, 2) for item in episodes]
    splits = [item.split for item in episodes]
    observed = [video[split - OBSERVED : split] for video, split in zip(videos, splits, strict=True)]
    future = [video[split : split + FUTURE] for video, split in zip(videos, splits, strict=True)]
    return observed, future


def encoded(episodes: Sequence[DrawnEpisode], encoder: VideoEncoder) -> Clips:
    """Latents as stage one computes them: each window by itself."""
    observed, future = (encoder.encode(part, batch_size=ENCODED_AT_ONCE) for part in windows_of(episodes))
    return Clips(observed.float(), future.float(), joints_of(episodes))


def as_pixels(episodes: Sequence[DrawnEpisode], *, patch: int) -> Clips:
    """Pixels of each patch of a step in place of latents."""
    observed, future = (
        torch.stack([_patched(item, patch) for item in part]) for part in windows_of(episodes)
    )
    return Clips(observed, future, joints_of(episodes))


def _patched(window: Tensor, patch: int) -> Tensor:
    frames, channels, height, width = window.shape
    parts = window.float().view(
        frames // TUBELET, TUBELET, channels, height // patch, patch, width // patch, patch
    )
    return parts.permute(0, 3, 5, 1, 2, 4, 6).flatten(1, 2).flatten(2) / 255


def check_encoder(
    episodes: Sequence[DrawnEpisode],
    *,
    encoders: Mapping[str, VideoEncoder],
    parts: Parts,
    epochs: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Figures of the first of `encoders`, with those of the others and of pixels to compare.

    `good_enough` says whether joints are at most a third as far off as the last pose held, over all steps
    and at the last one, and whether the card's color and place are read off 9 of 10 times.
    """
    joints: dict[str, Distance] = {}
    clips = {name: encoded(episodes, encoder) for name, encoder in encoders.items()}
    own = next(iter(clips.values()))
    clips["pixels"] = as_pixels(episodes, patch=next(iter(encoders.values())).config.patch_size)
    for name, read in clips.items():
        found = read_joints(read, parts, epochs=epochs, seed=seed, advance=advance)
        joints[f"true future latents, {name}" if name != "pixels" else "true future pixels"] = found.pop(
            "head"
        )
        joints |= found
    card = read_card(own, episodes, parts)
    best, held = next(iter(joints.values())), joints["last pose held"]
    shares = [best.mean_m / held.mean_m, best.last_step_m / held.last_step_m]
    return {
        "joints": {name: asdict(value) for name, value in joints.items()},
        "share_of_held_mean": shares[0],
        "share_of_held_last_step": shares[1],
        **card,
        "off_pixels": read_card(clips["pixels"], episodes, parts),
        "effective_rank": effective_rank(own),
        "latent_std": float(own.future.flatten(0, 2).std(dim=0).mean()),
        "num_trained": parts.num_train(len(episodes)),
        "num_tested": parts.num_test,
        "good_enough": max(shares) <= MOST_OF_HELD and min(card.values()) >= LEAST_READ,
    }


def read_card(clips: Clips, episodes: Sequence[DrawnEpisode], parts: Parts) -> dict[str, float]:
    """Shares of the last clips whose card's color and place are read off the observed window."""
    return {
        name: share_read_right(
            clips.observed.flatten(1),
            [getattr(episode, name) for episode in episodes],
            num_validation=parts.num_validation,
            num_test=parts.num_test,
        )
        for name in ("color", "place")
    }


def read_joints(
    clips: Clips, parts: Parts, *, epochs: int, seed: int, advance: Callable[[], None] = lambda: None
) -> dict[str, Distance]:
    """Distances on the last clips of a head trained on the first ones, its epoch chosen by those between.

    `head` reads true future latents, which no forecast does. The others read observed poses.
    """
    num_train, num_test = parts.num_train(len(clips.future)), parts.num_test
    train, validation, test = (
        clips.only(part) for part in (slice(num_train), slice(num_train, -num_test), slice(-num_test, None))
    )
    ids = range(len(clips.future))
    fit = fit_ridge(clips, ids[:num_train], ids[num_train:-num_test])  # type: ignore[arg-type]
    head = train_head(train, validation, fit, epochs=epochs, seed=seed, advance=advance)
    poses, future_m = test.joints.poses, test.joints.future_m
    with torch.no_grad():
        found = {
            "head": head(test.future, poses),
            "ridge on observed poses": head.ridge(poses, num_steps=FUTURE // TUBELET),
            "last pose held": poses.last_pose_m[:, None, None].expand_as(future_m),
        }
    return {name: distance(predicted_m, future_m) for name, predicted_m in found.items()}


def distance(predicted_m: Tensor, future_m: Tensor) -> Distance:
    """Over all clips, joints and frames."""
    by_step_BT = torch.linalg.vector_norm(predicted_m - future_m, dim=-1).mean(dim=(2, 3))
    return Distance(float(by_step_BT.mean()), float(by_step_BT[:, -1].mean()))


def new_head(clips: Clips, fit: RidgeFit, *, seed: int) -> TrajectoryHead:
    """The project's head of default settings for these latents, before it has learned."""
    _, steps, patches, dim = clips.future.shape
    side = round(patches**0.5)
    joints = tuple(str(number) for number in range(clips.joints.future_m.shape[3]))
    head = TrajectoryHead(
        ModelShape(
            variant="jepa",
            grid=LatentGrid(OBSERVED // TUBELET, steps, side, side, dim),
            trunk=TrunkShape(depth=1, width=dim - dim % 6, heads=1),
            thinker=None,
            fusion_width=1,
            head=HeadShape(joints, TUBELET, SETTINGS.anchor, SETTINGS.head_width),
        )
    )
    initialize(head, named_generator(seed, "head"))
    head.begin_at_start()
    head.ridge.set_fit(fit)
    return head


def train_head(
    train: Clips,
    validation: Clips,
    fit: RidgeFit,
    *,
    epochs: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> TrajectoryHead:
    """Train on true future latents by the project's loss, and keep the epoch that is best on validation."""
    head = new_head(train, fit, seed=seed)
    matrices = [value for value in head.parameters() if value.ndim >= 2]
    others = [value for value in head.parameters() if value.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": SETTINGS.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=SETTINGS.head_learning_rate,
    )
    best_m, best = float("inf"), head.state_dict()
    for epoch in range(epochs):
        order = epoch_order(len(train.future), seed=seed, epoch=epoch)
        for start in range(0, len(order), SETTINGS.batch_size):
            clips = train.only(order[start : start + SETTINGS.batch_size])
            joints = clips.joints
            found_m = head(clips.future, joints.poses)
            errors = trajectory_error(
                found_m, joints.future_m, joints.future_confidence, unit_m=head.unit_m(joints.poses)
            )
            optimizer.zero_grad()
            errors.mean().backward()
            optimizer.step()
        distance_m = _validation_distance_m(head, validation)
        if distance_m < best_m:
            best_m, best = distance_m, {name: value.clone() for name, value in head.state_dict().items()}
        advance()
    head.load_state_dict(best)
    return head


@torch.no_grad()
def _validation_distance_m(head: TrajectoryHead, clips: Clips) -> float:
    return distance(head(clips.future, clips.joints.poses), clips.joints.future_m).mean_m


def effective_rank(clips: Clips) -> float:
    """Effective rank of future latents, as evaluations report it: near 1 after a collapse."""
    spread = LatentSpread()
    spread.add({}, clips.future)
    return spread.figures()["future"]["effective_rank"]
