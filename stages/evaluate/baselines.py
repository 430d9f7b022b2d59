"""Where joints would be if hands just stayed, or just went on: forecasts without a model.

Shape letters: F observed frames, K future frames, J joints.

What is forecast of a batch of clips: by the model, and by methods that a model has to beat.

Only what is known at the split frame enters: `Known` holds nothing of the future but the times asked about.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thinkjepa.cache import ClipRow
from thinkjepa.stages.data.trajectories import Positions, Supervision
from thinkjepa.stages.train.data.batches import TokenBatch
from thinkjepa.stages.train.data.features import Batch, Features
from thinkjepa.stages.train.fit.losses import persistence
from thinkjepa.stages.train.model.forecast import Forecast, ForecastModel


def constant_velocity(
    observed_m: Positions,
    seen: npt.NDArray[np.bool_],
    *,
    observed_times_s: Sequence[float],
    future_times_s: Sequence[float],
) -> Positions:
    """Positions `(future frame, joint, 3)`, metres: each joint goes on as between the last two times it was
    seen at.

    `observed_m` is `(observed frame, joint, 3)`, `seen` `(observed frame, joint)`. Times are the frames' real
    ones, so that uneven and repeated frames do no harm. A joint seen at one time only stays there; what it
    gives for a joint never seen is meaningless and finite.
    """
    times_F = np.asarray(observed_times_s, dtype=np.float64)
    joints_J = np.arange(seen.shape[1])
    last_J = _last(seen)
    earlier_FJ = seen & (times_F[:, np.newaxis] < times_F[last_J])
    before_J = np.where(earlier_FJ.any(axis=0), _last(earlier_FJ), last_J)
    elapsed_J = times_F[last_J] - times_F[before_J]
    last_J3 = observed_m[last_J, joints_J].astype(np.float64)
    moved_J3 = last_J3 - observed_m[before_J, joints_J]
    velocity_J3 = moved_J3 / np.where(elapsed_J > 0, elapsed_J, 1.0)[:, np.newaxis]
    ahead_KJ = np.asarray(future_times_s, dtype=np.float64)[:, np.newaxis] - times_F[last_J]
    moved: Positions = (last_J3 + ahead_KJ[..., np.newaxis] * velocity_J3).astype(np.float32)
    return moved


def _last(marked: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """The last marked frame of each joint; the last frame of all where none is."""
    last: npt.NDArray[np.intp] = len(marked) - 1 - np.argmax(marked[::-1], axis=0)
    return last


FORECASTS = (
    "model",
    "shuffled_guidance",
    "latent_persistence",
    "constant_pose",
    "constant_velocity",
    "mean_pose",
)
"""All methods, in the order of tables; the first two need a model, the second a thinker."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of some clips at their split frame, on one device."""

    observed: Tensor
    """`(batch, step, patch, dim)`"""
    pooled: Tensor | None
    """`(batch, level, stream, dim)`"""
    others_pooled: Tensor | None
    """The same of another clip each, None where the model has no thinker."""
    tokens: TokenBatch | None
    """The thinker's tokens, None where the model reads none."""
    others_tokens: TokenBatch | None
    """Those of the other clips."""
    last_pose_m: Tensor | None
    """`(batch, joint, 3)`"""
    moving_on_m: Tensor | None
    """`(batch, future step, frame, joint, 3)`: by constant velocity."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """One method's forecast; None is what it says nothing about."""

    latents: Tensor | None
    """`(batch, future step, patch, dim)`"""
    joints_m: Tensor | None
    """`(batch, future step, frame, joint, 3)`, metres."""


def known_at_split(
    features: Features, clips: Sequence[ClipRow], batch: Batch, *, partners: Mapping[str, str]
) -> Known:
    """Put together what is known; `partners` names the clip whose thinker states a clip is given instead."""
    device = batch.observed.device
    others = [partners[clip.clip_id] for clip in clips] if partners else []
    moving_on_m = moving_on(features.supervision, clips, windows=features.windows, tubelet=features.tubelet)
    return Known(
        observed=batch.observed,
        pooled=batch.pooled,
        others_pooled=features.pooled(others).to(device) if others else None,
        tokens=batch.tokens,
        others_tokens=features.tokens(others).to(device) if others and features.token_kinds else None,
        last_pose_m=batch.last_pose_m,
        moving_on_m=None if moving_on_m is None else moving_on_m.to(device),
    )


def moving_on(
    supervision: Supervision | None, clips: Sequence[ClipRow], *, windows: int, tubelet: int
) -> Tensor | None:
    """Constant velocity's joints `(batch, step, frame, joint, 3)`, metres; None without trajectories."""
    if supervision is None:
        return None
    positions = []
    for clip in clips:
        trajectory = supervision.trajectory(clip.clip_id)
        moved = constant_velocity(
            trajectory.observed_m,
            trajectory.observed_confidence > 0,
            observed_times_s=clip.observed_times_s,
            future_times_s=[time for window in clip.future_times_s[:windows] for time in window],
        )
        positions.append(moved.reshape(-1, tubelet, *moved.shape[1:]))
    return torch.from_numpy(np.stack(positions))


def predict_all(model: ForecastModel, known: Known, *, future_steps: int) -> dict[str, Predicted]:
    """Every method's forecast that this model and these clips allow, by its name in `FORECASTS`.

    A model whose window is shorter than `future_steps` is rolled out: its predictions become its context.
    """
    forecast = model(known.observed, known.pooled, known.last_pose_m, known.tokens, num_steps=future_steps)
    found = {"model": _of(forecast)}
    if known.others_pooled is not None:
        shuffled = model(
            known.observed,
            known.others_pooled,
            known.last_pose_m,
            known.others_tokens,
            num_steps=future_steps,
        )
        found["shuffled_guidance"] = _of(shuffled)
    repeated = persistence(known.observed, future_steps=future_steps)
    found["latent_persistence"] = Predicted(repeated, model.read_joints(repeated, known.last_pose_m))
    if forecast.joints_m is not None:
        poses_m = _poses(model, known)
        found |= {name: Predicted(None, pose.expand_as(forecast.joints_m)) for name, pose in poses_m.items()}
    return {name: found[name] for name in FORECASTS if name in found}


def _poses(model: ForecastModel, known: Known) -> dict[str, Tensor]:
    """Joints that need no latents, of shapes that extend to `(batch, step, frame, joint, 3)`."""
    assert model.head is not None, "asked for poses of a model without a head"
    assert known.last_pose_m is not None, "a head is trained on labels"
    assert known.moving_on_m is not None, "a head is trained on labels"
    poses = {"constant_pose": known.last_pose_m[:, None, None], "constant_velocity": known.moving_on_m}
    if model.head.shape.anchor == "none":  # else its centre is a mean displacement
        poses["mean_pose"] = model.head.center
    return poses


def _of(forecast: Forecast) -> Predicted:
    return Predicted(forecast.latents, forecast.joints_m)


def partners_of(clips: Sequence[ClipRow]) -> dict[str, str]:
    """For each clip another one, of another video wherever no video has more than half of the clips.

    Clips sorted by id stand video by video; each gets the one that stands as far on as the largest video is
    long. Every clip is the partner of exactly one. Empty where there is only one clip.
    """
    ordered = sorted(clips, key=lambda clip: clip.clip_id)
    if len(ordered) < 2:
        return {}
    most_clips = max(Counter(clip.video_digest for clip in ordered).values())
    shift = min(most_clips, len(ordered) - 1)
    turned = ordered[shift:] + ordered[:shift]
    return {clip.clip_id: other.clip_id for clip, other in zip(ordered, turned, strict=True)}
