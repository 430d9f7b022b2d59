"""A training in words: what it would take, what it begins with, each epoch, and what it came to."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinkjepa.pipeline.cli.console import counted, human_bytes
from thinkjepa.stages.data.joints import HANDS_NEED_LABELS, describe_joints
from thinkjepa.stages.data.partition import SPLIT_NAMES, SplitName, SplitSize
from thinkjepa.stages.display import MILLIMETERS
from thinkjepa.stages.train.model.config import WITHOUT_LATENTS

if TYPE_CHECKING:
    from thinkjepa.stages.train.events import EpochEnds, RunStarts


SELECTED_BY = {"joints": "distance of joints", "latents": "latent error", "loss": "loss"}
"""Words for the figure that chooses the best epoch, for each value of `--select-by`."""


def describe_costs(costs: dict[str, Any]) -> str:
    """Needs of a run, in a few lines."""
    parts = ", ".join(f"{number / 1e6:.2f} M {part}" for part, number in costs["parameters"].items())
    return "\n".join(
        [
            f"parameters       {parts}",
            f"memory           {costs['memory_bytes'] / 1e9:.2f} GB: weights, optimizer, clips of a forward",
            f"arithmetic       {costs['flops_per_clip'] / 1e12:.4g} TFLOP a clip, forward and backward; "
            f"{costs['tokens_per_clip']} tokens",
            f"read             {costs['read_bytes_per_clip'] / 1e6:.4g} MB a clip",
            "time             told by a run itself after its first steps, as time to expect",
        ]
    )


def describe_split(sizes: Mapping[SplitName, SplitSize], *, grouping: str) -> str:
    """The clips, videos and groups of each split name, as a table."""
    lines = [f"split            clips   share  videos  groups (by {grouping})"]
    for name, size in sizes.items():
        lines.append(
            f"  {name:<14} {size.clips:>5}  {100 * size.share:>4.0f} %  {size.videos:>6}  {size.groups:>6}"
        )
    return "\n".join(lines)


def describe_start(start: RunStarts) -> str:
    """The head of a training's log."""
    joints = [f"{start.num_joints} joints"] if start.num_joints else []
    task = " and ".join([*([] if start.variant in WITHOUT_LATENTS else ["latents"]), *joints])
    processes = f"{start.processes} processes, each with " if start.processes > 1 else ""
    memory = human_bytes(start.memory_bytes)
    hands = [] if start.has_labels else [f"hands            none; {HANDS_NEED_LABELS}"]
    if start.unknown_joints:
        unknown = describe_joints(start.unknown_joints)
        hands.append(f"joints           without {unknown}: confidence 0 in all training clips")
    lines = [
        f"model            {start.variant}, {start.parameters / 1e6:.2f} M parameters, predicts {task}",
        *hands,
        f"device           {start.device}, {processes}{counted(start.threads, 'thread')}, about {memory}",
        describe_split(start.sizes, grouping=start.grouping),
        f"training         {counted(start.epochs, 'epoch')} of {counted(start.steps_per_epoch, 'step')}, the "
        f"best by the validation clips' {SELECTED_BY[start.select_by]} is kept",
    ]
    if start.guidance_source:
        lines.append(f"guidance source  {start.guidance_source}")
    if any(start.without_tokens.values()):
        counts = ", ".join(f"{number} {name}" for name, number in start.without_tokens.items())
        lines.append(
            f"without tokens   {counts} clips have none of --cross-tokens: forecast without a thinker"
        )
    if start.epochs_done or start.steps_done:
        lines.append(f"continues        after epoch {start.epochs_done}, step {start.steps_done} of the next")
    return "\n".join(lines)


def describe_epoch(end: EpochEnds) -> str:
    """The mean losses of an epoch in a line."""
    losses, width = end.losses, len(str(end.epochs))
    parts = [
        f"epoch {losses.epoch:>{width}}/{end.epochs}: loss {losses.train_loss:.5f} training",
        f"{losses.validation_loss:.5f} validation" + (" (best so far)" if end.best else ""),
    ]
    if losses.validation_distance_m is not None:
        ridge = " (ridge)" if losses.head_share == 0 else ""
        parts.append(f"joints {MILLIMETERS.amount(losses.validation_distance_m)}{ridge}")
    if losses.latent_gradient is not None and losses.joint_gradient is not None:
        parts.append(f"gradients {losses.latent_gradient:.2g} latents {losses.joint_gradient:.2g} joints")
    return ", ".join(parts)


def describe_metrics(out: Path, metrics: dict[str, Any], *, was_finished: bool = False) -> str:
    """Results of a run, its folder, and the next step. `was_finished`: nothing was left to train."""
    clips = ", ".join(f"{metrics['num_clips'][name]} {name}" for name in SPLIT_NAMES)
    already = "already finished, nothing was trained: " if was_finished else ""
    lines = [
        f"{out}: {already}best epoch {metrics['best_epoch']} of {metrics['epochs']} by "
        f"{SELECTED_BY[metrics.get('select_by', 'loss')]} (clips: {clips})",
    ]
    if (latent_error := metrics.get("validation_latent_error")) is not None:
        lines.append(
            f"  validation latent MSE {latent_error:.5f}, "
            f"latent persistence {metrics['persistence_validation_loss']:.5f}"
        )
    if (distance_m := metrics.get("validation_distance_m")) is not None:
        ridge = ", the ridge's: no more counts of the head" if metrics.get("head_share") == 0 else ""
        lines.append(
            f"  validation distance of {metrics['num_joints']} joints {MILLIMETERS.amount(distance_m)}{ridge}"
        )
        if unlabelled := metrics["unlabelled"]["clips"]:
            lines.append(f"  left out {unlabelled} clips: {metrics['unlabelled']['first']}, for one")
    if (initial := metrics.get("initial_validation_loss")) is not None:
        lines.append(
            f"  validation loss before training {initial:.5f}, from random weights "
            f"{metrics['random_start_validation_loss']:.5f}"
        )
    folder = shlex.quote(str(out))
    return "\n".join(
        [
            *lines,
            "  there: metrics.json, curve.png, curve.csv, split.json, run.json, and the best epoch's weights "
            "in checkpoints",
            f"  next: thinkjepa-eval --run {folder}",
        ]
    )
