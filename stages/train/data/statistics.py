"""Mean and standard deviation, over the training clips, of the thinker's states, of latents and of joints.

All are summed in float64, in one pass over the cache, over a fixed sample where there are many clips.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thinkjepa.stages.train.data.batches import batches_in_order
from thinkjepa.stages.train.data.features import Features
from thinkjepa.stages.train.data.tokens import TokenBatch
from thinkjepa.stages.train.model.reading import TokenReading
from thinkjepa.stages.train.randomness import epoch_order

SAMPLE_CLIPS = 4096
"""Enough for a mean and a deviation per dim. Reading more takes time and changes nothing."""

SAMPLE_BATCH = 256

LATENT_CLIPS = 256  # thousands of latents each

TOKEN_CLIPS = 64  # a thousand tokens each

SMALLEST_SCALE = 1e-6

SMALLEST_STD_M = 1e-3  # of joints that hardly move: their errors are not blown up


@dataclass(frozen=True, slots=True)
class StateStatistics:
    """Mean and scale, float32: `(x - mean) / scale` is of order one.

    Shape `(level, stream, dim)` of pooled states, `(level, dim)` of slots or of tokens, `(2, level, dim)` of
    both.
    """

    mean: Tensor
    scale: Tensor


def pooled_statistics(batches: Iterable[Tensor]) -> StateStatistics:
    """Statistics of batches `(clip, level, stream, dim)`, summed in float64, in one pass.

    Streams that are all zeros (nothing was generated) do not count. A dim that hardly varies is not blown up:
    its scale is at least a tenth of the median dim's, and a thousandth of its mean.
    """
    count = total = squares = torch.zeros((), dtype=torch.float64)
    for batch_BLSD in batches:
        states = batch_BLSD.double()
        count = count + states.ne(0).any(dim=-1, keepdim=True).sum(dim=0)
        total = total + states.sum(dim=0)
        squares = squares + states.square().sum(dim=0)
    return _state_statistics(count, total, squares)


def token_statistics(clips: Iterable[Tensor]) -> StateStatistics:
    """Statistics of clips' tokens `(level, token, dim)`, counted one by one, summed in float64, in one pass.

    Massive activations of a few tokens make their dims' scales large, so that these hardly count elsewhere.
    """
    moments = Moments()
    for states_LSD in clips:
        moments.add(states_LSD)
    return moments.statistics()


class Moments:
    """Sums over tokens, in float64."""

    def __init__(self) -> None:
        self._count = self._total = self._squares = torch.zeros((), dtype=torch.float64)

    def add(self, states_LSD: Tensor) -> None:
        """Count tokens `(level, token, dim)`."""
        states = states_LSD.double()
        self._count = self._count + states.shape[1]
        self._total = self._total + states.sum(dim=1)
        self._squares = self._squares + states.square().sum(dim=1)

    def statistics(self) -> StateStatistics:
        """Statistics of all that was counted."""
        return _state_statistics(self._count, self._total, self._squares)


def _state_statistics(count: Tensor, total: Tensor, squares: Tensor) -> StateStatistics:
    mean = total / count.clamp(min=1)
    std = (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
    floor = torch.maximum(0.1 * std.median(dim=-1, keepdim=True).values, 1e-3 * mean.abs())
    scale = torch.maximum(std, floor).clamp(min=SMALLEST_SCALE)
    return StateStatistics(mean=mean.float(), scale=scale.float())


@dataclass(frozen=True, slots=True)
class LatentStatistics:
    """Mean and deviation of latents, and root mean square of their change, each `(dim,)`, float32."""

    mean: Tensor
    scale: Tensor
    change_scale: Tensor


def latent_statistics(features: Features, train_ids: Sequence[str]) -> LatentStatistics:
    """Statistics of the training clips' latents, both windows, and of their change from the observed one.

    The change is that of each future step from the last observed step. Its mean is not taken off, so that no
    change stays zero. Floors are those of the thinker's states: a dim that hardly varies is not blown up.
    """
    latents_alone = replace(features, thinker=None, supervision=None, reading=TokenReading(), windows=1)
    total, squares, changes = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    count = num_changes = 0
    for (clip_id,) in sample_batches(train_ids, most=LATENT_CLIPS, batch_size=1):
        observed, future = latents_alone.batch([clip_id], torch.device("cpu")).latents
        for latents_BTPD in (observed.double(), future.double()):
            total = total + latents_BTPD.sum(dim=(0, 1, 2))
            squares = squares + latents_BTPD.square().sum(dim=(0, 1, 2))
            count += latents_BTPD[..., 0].numel()
        change_BTPD = future.double() - observed[:, -1:].double()
        changes = changes + change_BTPD.square().sum(dim=(0, 1, 2))
        num_changes += change_BTPD[..., 0].numel()
    latents = _state_statistics(torch.tensor(count), total, squares)
    change = _state_statistics(torch.tensor(num_changes), torch.zeros_like(total), changes)
    return LatentStatistics(mean=latents.mean, scale=latents.scale, change_scale=change.scale)


@dataclass(frozen=True, slots=True)
class JointStatistics:
    """Mean of each joint's positions `(..., joint, 3)` and deviation from it `(..., joint, 1)`, float32."""

    mean: Tensor
    scale: Tensor


def joint_statistics(batches: Iterable[tuple[Tensor, Tensor]]) -> JointStatistics:
    """Statistics over clips of positions `(batch, ..., joint, 3)`, by joint and all axes before it.

    They are weighted by confidences without the last axis, and summed in float64, in one pass. A joint that
    no clip knows at some frame has its mean and deviation over the other frames there. One that no clip knows
    at all stays at the origin. A deviation is at least 1 mm.
    """
    weight = total = squares = torch.zeros((), dtype=torch.float64)
    for positions, confidence in batches:
        weights = confidence.double().unsqueeze(-1)
        weight = weight + weights.sum(dim=0)
        total = total + (weights * positions.double()).sum(dim=0)
        squares = squares + (weights * positions.double().square()).sum(dim=0)
    of_joints = tuple(range(weight.ndim - 2))
    known = weight > 0
    weight, total, squares = (
        torch.where(known, item, item.sum(dim=of_joints)) for item in (weight, total, squares)
    )
    count = torch.where(weight > 0, weight, 1.0)
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).mean(dim=-1, keepdim=True).sqrt()
    return JointStatistics(mean=mean.float(), scale=std.clamp(min=SMALLEST_STD_M).float())


def thinker_statistics(
    features: Features, train_ids: Sequence[str]
) -> tuple[StateStatistics, StateStatistics | None]:
    """Statistics of the training clips' pooled states and of their slots and tokens, None without any."""
    pooled = pooled_statistics(features.pooled(batch) for batch in sample_batches(train_ids))
    if not features.reading:
        return pooled, None
    clips = (features.tokens([clip_id]) for clip_id in token_sample(features, train_ids))
    if not (features.reading.slots and features.reading.kinds):
        return pooled, token_statistics(clip.states[0] for clip in clips)
    return pooled, slot_and_token_statistics(clips)


def slot_and_token_statistics(clips: Iterable[TokenBatch]) -> StateStatistics:
    """Statistics `(2, level, dim)` of the slots and of the tokens of batches of one clip each."""
    slots, tokens = Moments(), Moments()
    for clip in clips:
        states_LSD, (num_slots,) = clip.states[0, :, : clip.counts[0]], clip.slots
        slots.add(states_LSD[:, :num_slots])
        tokens.add(states_LSD[:, num_slots:])
    apart = [part.statistics() for part in (slots, tokens)]
    return StateStatistics(
        torch.stack([part.mean for part in apart]), torch.stack([part.scale for part in apart])
    )


def token_sample(features: Features, train_ids: Sequence[str]) -> list[str]:
    """The clips that token statistics are of, drawn from all that have some, the same in every process.

    Neighbours would be clips of two or three videos: ids begin with the video's.
    """
    has_tokens = features.count_tokens(train_ids) > 0
    drawn = [index for index in epoch_order(len(train_ids), seed=0, epoch=0) if has_tokens[index]]
    return [train_ids[index] for index in sorted(drawn[:TOKEN_CLIPS])]


def sample_batches(
    train_ids: Sequence[str], *, most: int = SAMPLE_CLIPS, batch_size: int = SAMPLE_BATCH
) -> list[tuple[str, ...]]:
    """Batches of the training clips, or of a fixed sample where there are more than `most`."""
    order = epoch_order(len(train_ids), seed=0, epoch=0)[:most]
    return batches_in_order([train_ids[index] for index in sorted(order)], batch_size=batch_size)
