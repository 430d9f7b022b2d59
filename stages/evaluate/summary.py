"""An evaluation in figures: means over clips, their intervals, and curves over the horizon."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from thinkjepa.stages.evaluate.bootstrap import LEVEL, NUM_DRAWS, Floats, VideoBootstrap
from thinkjepa.stages.evaluate.clip_table import ClipTable
from thinkjepa.stages.evaluate.forecasts import FORECASTS
from thinkjepa.stages.evaluate.horizon import horizon_summary, time_summary
from thinkjepa.stages.evaluate.latent_metrics import LATENT_METRICS
from thinkjepa.stages.evaluate.trajectory_metrics import TRAJECTORY_CURVES, TRAJECTORY_METRICS

METRICS = (*TRAJECTORY_METRICS, *LATENT_METRICS)
CURVES = (*TRAJECTORY_CURVES, *LATENT_METRICS)
BETTER_WHEN_LARGER = frozenset({"acc_5cm", "cosine"})

POSE_BASELINES = ("constant_pose", "constant_velocity", "mean_pose")
"""Methods without training that say where joints will be."""

HEADLINE_DECIMALS = 4

DESCRIBING = (
    "schema",
    "split",
    "variant",
    "seed",
    "checkpoint_sha256",
    "joints",
    "keypoints",
    "reference_frames",
)
"""What of an evaluation's record is repeated beside the figures; run.json has the rest."""

Figure = Mapping[str, float | None]
"""`mean`, `low`, `high`; None is what is not known."""


def summarise(table: ClipTable) -> dict[str, Any]:
    """The content of eval-<split>.json."""
    bootstrap = VideoBootstrap(table.video_digests)
    means: dict[str, dict[str, Any]] = {"latent": {}, "trajectory": {}}
    intervals: dict[str, dict[str, Any]] = {"latent": {}, "trajectory": {}}
    for kind, names in (("latent", LATENT_METRICS), ("trajectory", TRAJECTORY_METRICS)):
        for method, figures in _by_method(table, names, bootstrap).items():
            means[kind][method] = {name: figure["mean"] for name, figure in figures.items()}
            ends = {name: [figure["low"], figure["high"]] for name, figure in figures.items()}
            intervals[kind][method] = ends
    return {
        **{name: table.record[name] for name in DESCRIBING},
        "num_clips": len(table.clip_ids),
        "num_videos": bootstrap.num_videos,
        "joint_frames": joint_frames(table),
        **means,
        "intervals": intervals,
        "interval": interval_method(),
        "last_frame": time_summary(table.numbers("last_frame_s")),
        "horizon": _horizon(table),
    }


def headline(result: Mapping[str, Any]) -> dict[str, float]:
    """The few numbers of an evaluation that fit a line, from the content of eval-<split>.json.

    `ade_m`, `fde_m` and `acc_5cm` of the run, `baseline_m` (the smallest ADE of a method without training),
    `latent` and `persist` (the squared latent error of the run and of latent persistence). What was not
    measured is left out.
    """
    joints, latents = result["trajectory"], result["latent"]
    baselines = [joints[name]["ade_m"] for name in POSE_BASELINES if "ade_m" in joints.get(name, {})]
    found = {name: joints.get("model", {}).get(name) for name in ("ade_m", "fde_m", "acc_5cm")}
    found |= {
        "baseline_m": min(baselines, default=None),
        "latent": latents["model"]["l2"],
        "persist": latents["latent_persistence"]["l2"],
    }
    return {name: round(value, HEADLINE_DECIMALS) for name, value in found.items() if value is not None}


def interval_method() -> dict[str, Any]:
    """How the intervals were made, for those who read the file."""
    return {"method": "percentile bootstrap over videos", "level": LEVEL, "draws": NUM_DRAWS}


def joint_frames(table: ClipTable) -> dict[str, int]:
    """Labelled joint-frames of the future, those that count, clips that have some; empty without joints."""
    if "counted_joint_frames" not in table.rows.column_names:
        return {}
    counted = table.numbers("counted_joint_frames")
    return {
        "labelled": int(table.numbers("labelled_joint_frames").sum()),
        "counted": int(counted.sum()),
        "clips": int((counted > 0).sum()),
    }


def figures(scores: Mapping[str, Floats], bootstrap: VideoBootstrap) -> dict[str, Figure]:
    """Mean and interval of each of some scores `(clip,)`; those that no clip has are left out."""
    known = {name: values for name, values in scores.items() if not np.isnan(values).all()}
    if not known:
        return {}
    found = bootstrap.intervals(np.stack(list(known.values()), axis=1))
    ends = zip(found.mean, found.low, found.high, strict=True)
    return {
        name: {"mean": number(mean), "low": number(low), "high": number(high)}
        for name, (mean, low, high) in zip(known, ends, strict=True)
    }


def number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else float(value)


def _by_method(
    table: ClipTable, names: Sequence[str], bootstrap: VideoBootstrap
) -> dict[str, dict[str, Figure]]:
    found = {method: figures(_scores(table, method, names), bootstrap) for method in methods(table)}
    return {method: values for method, values in found.items() if values}


def methods(table: ClipTable) -> list[str]:
    """The methods that were evaluated."""
    return [method for method in FORECASTS if any(table.has(method, name) for name in METRICS)]


def _scores(table: ClipTable, method: str, names: Iterable[str]) -> dict[str, Floats]:
    return {name: table.scores(method, name) for name in names if table.has(method, name)}


def _horizon(table: ClipTable) -> list[dict[str, Any]]:
    """One record per latent step: its horizon in seconds, and each method's means at that step."""
    records: list[dict[str, Any]] = [dict(record) for record in horizon_summary(table.lists("horizon_s"))]
    for method in methods(table):
        curves = {name: table.curves(method, name) for name in CURVES if table.has(method, name)}
        for step, record in enumerate(records):
            at_step = {name: _mean(curve[:, step]) for name, curve in curves.items()}
            record[method] = {name: value for name, value in at_step.items() if value is not None}
    return records


def _mean(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
