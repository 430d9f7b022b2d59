"""Distances that tell a hand's shape from its place, and joints that move from those that rest.

Shape letters: B batch, T latent steps, K frames of a step, J joints, H joints of a hand, N all frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thinkjepa.stages.data.joints import HAND_SIDES, PAPER_JOINTS

FEWEST_ALIGNED = 3
"""Joints of a hand that count in a frame, below which it is not aligned: fewer always fit."""

MOVING_M = 0.02
"""A joint moves where its true position gets farther than this from its last observed one."""


@dataclass(frozen=True, slots=True)
class Hand:
    """A hand's joints by their indices among the joints that a run predicts."""

    joints: tuple[int, ...]
    """Wrist, fingers and thumb. The forearm is no part of the hand."""
    wrist: int | None


def hands_of(names: Sequence[str]) -> list[Hand]:
    """The hands that have any of these joints, which are named as EgoDex names them."""
    hands = []
    for side in HAND_SIDES:
        own = {name for name in PAPER_JOINTS if name.startswith(side)} - {f"{side}Forearm"}
        joints = tuple(index for index, name in enumerate(names) if name in own)
        wrist = f"{side}Hand"
        if joints:
            hands.append(Hand(joints, names.index(wrist) if wrist in names else None))
    return hands


def wrist_relative(
    predicted_m: Tensor, future_m: Tensor, counted: Tensor, hands: Sequence[Hand]
) -> tuple[Tensor, Tensor]:
    """Distances `(batch, joint-frame)` of joints relative to their hand's wrist, and which of them count.

    Positions are `(batch, step, frame, joint, 3)`. The predicted wrist is taken off the predicted joints, the
    true one off the true ones. A joint counts in frames where its wrist does; the wrist itself does not.
    """
    distances, known = [], []
    for hand in hands:
        if hand.wrist is None:
            continue
        others = [joint for joint in hand.joints if joint != hand.wrist]
        offset_m = (predicted_m - future_m)[..., [hand.wrist], :]
        error_BTKH3 = (predicted_m - future_m)[..., others, :] - offset_m
        distances.append(torch.linalg.vector_norm(error_BTKH3, dim=-1).flatten(1))
        known.append((counted[..., others] & counted[..., [hand.wrist]]).flatten(1))
    return _joined(distances, known, counted)


def procrustes_aligned(
    predicted_m: Tensor, future_m: Tensor, counted: Tensor, hands: Sequence[Hand]
) -> tuple[Tensor, Tensor]:
    """Distances `(batch, joint-frame)` after each hand was aligned to the true one, and which of them count.

    The alignment is the similarity (scale, rotation, translation, no reflection) of least squares over the
    joints that count, of each hand in each frame by itself. Hands with fewer than `FEWEST_ALIGNED` do not
    count.
    """
    distances, known = [], []
    for hand in hands:
        joints = list(hand.joints)
        counted_BTKH = counted[..., joints]
        counted_BTKH = counted_BTKH & (counted_BTKH.sum(dim=-1, keepdim=True) >= FEWEST_ALIGNED)
        aligned_m = aligned(
            predicted_m[..., joints, :].flatten(0, 2),
            future_m[..., joints, :].flatten(0, 2),
            counted_BTKH.flatten(0, 2),
        )
        error = aligned_m - future_m[..., joints, :].flatten(0, 2)
        distances.append(torch.linalg.vector_norm(error, dim=-1).view(len(counted), -1))
        known.append(counted_BTKH.flatten(1))
    return _joined(distances, known, counted)


def aligned(predicted_m: Tensor, future_m: Tensor, counted: Tensor) -> Tensor:
    """Predicted points `(frame, joint, 3)` by the similarity that takes them nearest to the true ones.

    Umeyama's solution (IEEE PAMI 13, 1991) over the points that count, `(frame, joint)`.
    """
    weight_NH1 = counted.to(predicted_m.dtype)[..., None]
    count_N11 = weight_NH1.sum(dim=1, keepdim=True).clamp(min=1)
    predicted_mean = (weight_NH1 * predicted_m).sum(dim=1, keepdim=True) / count_N11
    future_mean = (weight_NH1 * future_m).sum(dim=1, keepdim=True) / count_N11
    source_NH3 = weight_NH1 * (predicted_m - predicted_mean)
    target_NH3 = weight_NH1 * (future_m - future_mean)
    left, singular_N3, right = torch.linalg.svd(source_NH3.mT @ target_NH3)
    signs_N3 = torch.ones_like(singular_N3)
    signs_N3[:, 2] = torch.linalg.det(left @ right).sign()  # no reflection
    rotation_N33 = (left * signs_N3[:, None]) @ right
    spread_N = source_NH3.square().sum(dim=(1, 2))
    scale_N = (singular_N3 * signs_N3).sum(dim=1) / torch.where(spread_N > 0, spread_N, 1.0)
    found_m: Tensor = scale_N[:, None, None] * ((predicted_m - predicted_mean) @ rotation_N33) + future_mean
    return found_m


def moving_joints(future_m: Tensor, last_pose_m: Tensor, counted: Tensor) -> Tensor:
    """Mark counted joint-frames of joints that move, `(batch, step, frame, joint)` bool."""
    moved_BTKJ = torch.linalg.vector_norm(future_m - last_pose_m[:, None, None], dim=-1)
    farthest_BJ = torch.where(counted, moved_BTKJ, 0.0).amax(dim=(1, 2))
    return counted & (farthest_BJ > MOVING_M)[:, None, None]


def _joined(distances: list[Tensor], known: list[Tensor], counted: Tensor) -> tuple[Tensor, Tensor]:
    """All hands' distances; none where no hand has the joints."""
    if not distances:
        none = counted.flatten(1)[:, :0]
        return none.double(), none
    return torch.cat(distances, dim=1), torch.cat(known, dim=1)
