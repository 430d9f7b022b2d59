"""Predictions of all methods for a batch of clips: of the model, and of methods that it has to beat.

`SplitInputs` holds what is available at the split frame, so that nothing of the future but the times to
predict can enter a prediction.

Shape letters: F observed frames, K future frames, J joints.
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
from thinkjepa.stages.evaluate.metrics import MetricKind
from thinkjepa.stages.train.data.batches import TokenBatch
from thinkjepa.stages.train.data.features import Batch, Features
from thinkjepa.stages.train.data.poses import ObservedPoses
from thinkjepa.stages.train.fit.losses import persistence
from thinkjepa.stages.train.model.forecast import ForecastModel


@dataclass(frozen=True, slots=True)
class Method:
    """A way to predict: a run's model, a control that uses its weights, or a baseline."""

    of_run: tuple[MetricKind, ...] = ()
    """Kinds of metrics whose values depend on the run. The others are the same for all runs."""
    in_comparison: str = ""
    """The name of such values in a comparison, from the name of a group of runs."""
    in_rollout: str = ""
    """The same in a rollout, from the name of a run."""


METHODS = {
    "model": Method(("trajectory", "latent"), "{}", "{}"),
    "shuffled_guidance": Method(
        ("trajectory", "latent"), "{}, shuffled guidance", "{}, another clip's thinker"
    ),
    "latent_persistence": Method(
        ("trajectory",), "{} head on last latents", "{}, its head on the last latents"
    ),
    "constant_pose": Method(),
    "constant_velocity": Method(),
    "mean_pose": Method(),
}
"""All methods by name, in the order of tables."""


@dataclass(frozen=True, slots=True)
class SplitInputs:
    """Inputs of all methods, available at the split frame of some clips, on one device."""

    observed: Tensor
    """`(batch, step, patch, dim)`"""
    pooled: Tensor | None
    """`(batch, level, stream, dim)`"""
    shuffled_pooled: Tensor | None
    """The same of another clip each, None where the model has no thinker."""
    tokens: TokenBatch | None
    """The thinker's tokens, None where the model reads none."""
    shuffled_tokens: TokenBatch | None
    """Those of the other clips."""
    poses: ObservedPoses | None
    """Joints at the observed frames, None in a run on latents alone."""
    constant_velocity_m: Tensor | None
    """`(batch, future step, frame, joint, 3)`"""


@dataclass(frozen=True, slots=True)
class Predicted:
    """The prediction of one method; None where it makes none."""

    latents: Tensor | None
    """`(batch, future step, patch, dim)`"""
    joints_m: Tensor | None
    """`(batch, future step, frame, joint, 3)`, metres."""


def inputs_at_split(
    features: Features, clips: Sequence[ClipRow], batch: Batch, *, partners: Mapping[str, str]
) -> SplitInputs:
    """Inputs of a batch; `partners` names the clip whose thinker states replace a clip's own."""
    device = batch.observed.device
    others = [partners[clip.clip_id] for clip in clips] if partners else []
    velocity_m = None
    if features.supervision is not None:
        velocity_m = _constant_velocity_batch(
            features.supervision, clips, windows=features.windows, tubelet=features.tubelet
        ).to(device)
    return SplitInputs(
        observed=batch.observed,
        pooled=batch.pooled,
        shuffled_pooled=features.pooled(others).to(device) if others else None,
        tokens=batch.tokens,
        shuffled_tokens=features.tokens(others).to(device) if others and features.token_kinds else None,
        poses=batch.poses,
        constant_velocity_m=velocity_m,
    )


def predict_all(model: ForecastModel, inputs: SplitInputs, *, future_steps: int) -> dict[str, Predicted]:
    """Predictions by method, of all methods that this model and these clips allow.

    A model whose window is shorter than `future_steps` is rolled out: its predictions become its context.
    """
    poses = inputs.poses
    own = model(inputs.observed, inputs.pooled, poses, inputs.tokens, num_steps=future_steps)
    found = {"model": Predicted(own.latents, own.joints_m)}
    if inputs.shuffled_pooled is not None:
        shuffled = model(
            inputs.observed,
            inputs.shuffled_pooled,
            poses,
            inputs.shuffled_tokens,
            num_steps=future_steps,
        )
        found["shuffled_guidance"] = Predicted(shuffled.latents, shuffled.joints_m)
    repeated = persistence(inputs.observed, future_steps=future_steps)
    found["latent_persistence"] = Predicted(repeated, model.read_joints(repeated, poses))
    if own.joints_m is not None:
        poses_m = _poses(model, inputs)
        found |= {name: Predicted(None, pose.expand_as(own.joints_m)) for name, pose in poses_m.items()}
    return found


def _poses(model: ForecastModel, inputs: SplitInputs) -> dict[str, Tensor]:
    """Joints of methods without latents, of shapes that extend to `(batch, step, frame, joint, 3)`."""
    assert model.head is not None, "joints were predicted without a head"
    assert inputs.poses is not None, "a head is trained on labels"
    assert inputs.constant_velocity_m is not None, "a head is trained on labels"
    poses = {
        "constant_pose": inputs.poses.last_pose_m[:, None, None],
        "constant_velocity": inputs.constant_velocity_m,
    }
    if model.head.shape.anchor == "none":  # else its center is a mean displacement
        poses["mean_pose"] = model.head.center
    return poses


def partners_of(clips: Sequence[ClipRow]) -> dict[str, str]:
    """Another clip for each clip, of another video wherever no video has more than half of the clips.

    Clips sorted by id are grouped by video. Each gets the clip that follows it at the distance of the largest
    video's number of clips, so that every clip is the partner of exactly one. Empty for a single clip.
    """
    ordered = sorted(clips, key=lambda clip: clip.clip_id)
    if len(ordered) < 2:
        return {}
    most_clips = max(Counter(clip.video_digest for clip in ordered).values())
    shift = min(most_clips, len(ordered) - 1)
    turned = ordered[shift:] + ordered[:shift]
    return {clip.clip_id: other.clip_id for clip, other in zip(ordered, turned, strict=True)}


def _constant_velocity_batch(
    supervision: Supervision, clips: Sequence[ClipRow], *, windows: int, tubelet: int
) -> Tensor:
    """Joints by constant velocity `(batch, step, frame, joint, 3)`, metres."""
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


def constant_velocity(
    observed_m: Positions,
    visible: npt.NDArray[np.bool_],
    *,
    observed_times_s: Sequence[float],
    future_times_s: Sequence[float],
) -> Positions:
    """Positions `(future frame, joint, 3)`, metres, by each joint's velocity between its last two times.

    `observed_m` is `(observed frame, joint, 3)`, `visible` `(observed frame, joint)`. Times are the frames'
    real ones, so that uneven and repeated frames do no harm. A joint that is visible at one time only stays
    there. The result for a joint that is never visible is meaningless and finite.
    """
    times_F = np.asarray(observed_times_s, dtype=np.float64)
    joints_J = np.arange(visible.shape[1])
    last_J = _last_frame(visible)
    earlier_FJ = visible & (times_F[:, np.newaxis] < times_F[last_J])
    before_J = np.where(earlier_FJ.any(axis=0), _last_frame(earlier_FJ), last_J)
    elapsed_J = times_F[last_J] - times_F[before_J]
    last_J3 = observed_m[last_J, joints_J].astype(np.float64)
    moved_J3 = last_J3 - observed_m[before_J, joints_J]
    velocity_J3 = moved_J3 / np.where(elapsed_J > 0, elapsed_J, 1.0)[:, np.newaxis]
    ahead_KJ = np.asarray(future_times_s, dtype=np.float64)[:, np.newaxis] - times_F[last_J]
    moved: Positions = (last_J3 + ahead_KJ[..., np.newaxis] * velocity_J3).astype(np.float32)
    return moved


def _last_frame(chosen_FJ: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """The last chosen frame of each joint; the last frame of all where none is chosen."""
    last: npt.NDArray[np.intp] = len(chosen_FJ) - 1 - np.argmax(chosen_FJ[::-1], axis=0)
    return last
