"""Predictions of all methods for a batch of clips: of the model, and of methods to hold it against.

`SplitInputs` holds what is available at the split frame, so that nothing of the future but the times to
predict can enter a prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thinkjepa.cache import ClipRow
from thinkjepa.stages.evaluate.learned import Learned
from thinkjepa.stages.evaluate.metrics import MetricKind
from thinkjepa.stages.evaluate.motion import constant_velocity, damped_velocity, future_times_s
from thinkjepa.stages.evaluate.partners import Partners
from thinkjepa.stages.train.data.features import Batch, Features
from thinkjepa.stages.train.data.poses import ObservedPoses
from thinkjepa.stages.train.data.tokens import TokenBatch
from thinkjepa.stages.train.fit.losses import persistence
from thinkjepa.stages.train.model.forecast import ForecastModel
from thinkjepa.stages.train.model.ridge import PoseRidge


@dataclass(frozen=True, slots=True)
class Method:
    """A way to predict: a run's model, a control that uses its weights, or a baseline."""

    of_run: tuple[MetricKind, ...] = ()
    """Kinds of metrics whose values depend on the run. The others are the same for all runs."""
    in_comparison: str = ""
    """The name of such values in a comparison, from the name of a group of runs."""
    sees_future: bool = False
    """Whether it is given the true future: a limit to hold errors against, and no prediction.

    It has no part in rankings, differences and verdicts.
    """


METHODS = {
    "model": Method(("trajectory", "latent"), "{}"),
    "shuffled_guidance": Method(("trajectory", "latent"), "{}, shuffled guidance"),
    "latent_persistence": Method(("trajectory",), "{} head on last latents"),
    "mean_latent": Method(),
    "readout_ceiling": Method(
        ("trajectory", "latent"),
        "{} head on TRUE future latents (sees the future)",
        sees_future=True,
    ),
    "ridge": Method(),
    "constant_pose": Method(),
    "constant_velocity": Method(),
    "damped_velocity": Method(),
    "mean_displacement": Method(),
    "mean_pose": Method(),
}
"""All methods by name, in the order of tables."""


@dataclass(frozen=True, slots=True)
class SplitInputs:
    """Inputs of all methods, available at the split frame of some clips, on one device."""

    observed: Tensor | None
    """`(batch, step, patch, dim)`, None in a run without latents."""
    pooled: Tensor | None
    """`(batch, level, stream, dim)`"""
    tokens: TokenBatch | None
    """The thinker's slots and tokens, None where the model reads none."""
    shuffled: tuple[tuple[Tensor, TokenBatch | None], ...]
    """Both of another clip each, once for every permutation; empty where the model has no thinker."""
    poses: ObservedPoses | None
    """Joints at the observed frames, None in a run on latents alone."""
    ahead_s: Tensor
    """`(batch, future frame)`: the times to predict, seconds from the last observed frame, float64."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """The prediction of one method; None where it makes none."""

    latents: Tensor | None
    """`(batch, future step, patch, dim)`"""
    joints_m: Tensor | None
    """`(batch, future step, frame, joint, 3)`, metres."""
    further: tuple["Predicted", ...] = ()
    """More predictions of a method that draws at random, whose scores are averaged with this one's."""

    @property
    def draws(self) -> tuple["Predicted", ...]:
        return (self, *self.further)


def inputs_at_split(
    features: Features,
    clips: Sequence[ClipRow],
    batch: Batch,
    *,
    permutations: Sequence[Partners],
    device: torch.device,
) -> SplitInputs:
    """Inputs of a batch on `device`; `permutations` name clips whose thinker states replace a clip's own."""
    shuffled = []
    for partners in permutations:
        others = [partners[clip.clip_id] for clip in clips]
        tokens = features.tokens(others).to(device) if features.reading else None
        shuffled.append((features.pooled(others).to(device), tokens))
    return SplitInputs(
        observed=batch.observed,
        pooled=batch.pooled,
        tokens=batch.tokens,
        shuffled=tuple(shuffled),
        poses=batch.poses,
        ahead_s=future_times_s(clips, windows=features.windows).to(device),
    )


def predict_all(
    model: ForecastModel,
    inputs: SplitInputs,
    learned: Learned | None,
    ridge: PoseRidge | None,
    *,
    future_steps: int,
) -> dict[str, Predicted]:
    """Predictions by method, of all methods that this model and these clips allow.

    Without `learned`, baselines that are learned anew from training clips are left out. A model with a head
    comes with a `ridge`.
    A model whose window is shorter than `future_steps` is rolled out: its predictions become its context.
    """
    poses = inputs.poses
    own = model(inputs.observed, inputs.pooled, poses, inputs.tokens, num_steps=future_steps)
    found = {"model": Predicted(own.latents, own.joints_m)}
    draws = []
    for pooled, tokens in inputs.shuffled:
        shuffled = model(inputs.observed, pooled, poses, tokens, num_steps=future_steps)
        draws.append(Predicted(shuffled.latents, shuffled.joints_m))
    if draws:
        found["shuffled_guidance"] = replace(draws[0], further=tuple(draws[1:]))
    if inputs.observed is not None:
        repeated = persistence(inputs.observed, future_steps=future_steps)
        found["latent_persistence"] = Predicted(repeated, model.read_joints(repeated, poses))
    if own.latents is not None and learned is not None and learned.latent is not None:
        found["mean_latent"] = Predicted(learned.latent.to(own.latents).expand_as(own.latents), None)
    if own.joints_m is not None:
        assert ridge is not None, "a run with a head has fitted one"
        poses_m = {"ridge": ridge(poses, num_steps=future_steps)}
        poses_m |= _poses(inputs, learned, future_steps=future_steps)
        found |= {
            name: Predicted(None, pose.to(own.joints_m).expand_as(own.joints_m))
            for name, pose in poses_m.items()
        }
    return found


def readout_ceiling(model: ForecastModel, batch: Batch) -> dict[str, Predicted]:
    """Joints that the run's head reads off the true future latents; empty where it reads none off latents.

    Kept apart from `predict_all`, whose inputs hold no future. The head was trained on predicted latents, so
    that this is no strict bound.
    """
    joints_m = None if batch.future is None else model.read_joints(batch.future, batch.poses)
    return {} if joints_m is None else {"readout_ceiling": Predicted(None, joints_m)}


def _poses(inputs: SplitInputs, learned: Learned | None, *, future_steps: int) -> dict[str, Tensor]:
    """Joints of methods without latents, of shapes that extend to `(batch, step, frame, joint, 3)`."""
    assert inputs.poses is not None, "a head is trained on labels"
    last_m = inputs.poses.last_pose_m[:, None, None]
    poses = {
        "constant_pose": last_m,
        "constant_velocity": _by_step(constant_velocity(inputs.poses, inputs.ahead_s), future_steps),
    }
    if learned is not None and (motion := learned.motion) is not None:
        damped_m = damped_velocity(inputs.poses, inputs.ahead_s, damping_s=motion.damping_s)
        poses["damped_velocity"] = _by_step(damped_m, future_steps)
        poses["mean_displacement"] = last_m + motion.displacement_m.to(last_m)
        poses["mean_pose"] = motion.pose_m
    return poses


def _by_step(positions_m: Tensor, num_steps: int) -> Tensor:
    """`(batch, future frame, joint, 3)` as `(batch, step, frame, joint, 3)`."""
    return positions_m.view(len(positions_m), num_steps, -1, *positions_m.shape[2:])
