"""Rollout of a trained run: its predicted latents become its context, window by window, to any horizon.

RUN/rollout-<split>.json   per horizon, in latent steps: means over clips with 95 % intervals

At each horizon all methods are measured over the steps up to it, against the windows that the cache holds, by
all metrics of one window but the latents' variance and rank. Those sum every latent of every step: at 32
steps of 256 patches of 1,024 dims 134 MB a method, and a covariance for each horizon. A
feature set with more windows than the run learned from serves it. Clips whose video ends before the farthest
horizon are in no such set: they are left out of all horizons, and counted.
Nothing of the future enters a prediction: the thinker's states are those of the split, joints are predicted
in the camera frame of the last observed frame, and no later camera pose is read for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from thinkjepa.cache import ClipRow
from thinkjepa.stages.data.partition import as_split_name
from thinkjepa.stages.device import choose_device
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.details.latents import Gallery
from thinkjepa.stages.evaluate.details.views import view_columns
from thinkjepa.stages.evaluate.evaluation import (
    DESCRIBING,
    clip_columns,
    counted_frames,
    describe,
    horizons_s,
    joint_names,
    predictions,
    rows_of,
    score_columns,
)
from thinkjepa.stages.evaluate.metrics import METRICS, frames_ahead_s, step_horizons_s
from thinkjepa.stages.evaluate.over_clips import figures_over_clips
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.evaluate.scores import Score, figures_by_kind
from thinkjepa.stages.evaluate.table import ClipTable, numbers
from thinkjepa.stages.intervals import INTERVAL_METHOD, Floats
from thinkjepa.stages.json_files import write_json
from thinkjepa.stages.progress import NoProgress, Progress
from thinkjepa.stages.train.data.features import Features

ROLLOUT_SCHEMA = "thinkjepa.rollout.v2"

SLOPE = -1
"""The step under which slopes over the future are kept, in units of the metric per second."""


@dataclass(frozen=True, slots=True)
class RolledOut:
    """The rollout of one run: its figures, and the scores of each clip that a comparison needs."""

    result: dict[str, Any]
    """The content of rollout-<split>.json."""
    table: ClipTable
    """Scores up to each horizon by its number of steps, and slopes at step `SLOPE`."""
    trained_on: Mapping[str, Mapping[str, Any]]


def evaluate_rollout(
    run_dir: Path,
    *,
    horizons: Sequence[int],
    split: str = "test",
    cache_dir: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The figures of `roll_out`."""
    return roll_out(
        run_dir, horizons=horizons, split=split, cache_dir=cache_dir, device=device, progress=progress
    ).result


def roll_out(
    run_dir: Path,
    *,
    horizons: Sequence[int],
    split: str = "test",
    cache_dir: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> RolledOut:
    """Metrics of a run over the first `horizons` latent steps of the future; figures are written to the run.

    Raises StageError where the cache holds fewer future windows than the farthest horizon needs.
    """
    if not horizons or min(horizons) < 1:
        raise StageError("--rollout: give horizons in latent steps, 1 or more, such as 4,8,16,32")
    split_name, run, all_steps = as_split_name(split), TrainedRun.open(run_dir), sorted(set(horizons))
    window_steps = run.shape.grid.future_steps
    windows = -(-max(horizons) // window_steps)
    features = run.features(cache_dir, windows=windows)
    clip_ids = run.clip_ids(split_name)
    held = features.clips.only(clip_ids).clip_ids.to_pylist() if windows > 1 else clip_ids
    clips = rows_of(held or clip_ids, features)
    record = describe(run, features, split_name, clips)
    table = _scored(run, features, clips, all_steps, record, device=device, progress=progress or NoProgress())
    clusters = table.clusters()
    result = {
        **{name: record[name] for name in DESCRIBING},
        "schema": ROLLOUT_SCHEMA,
        "num_clips": len(clips),
        "num_clips_left_out": len(clip_ids) - len(clips),
        "num_videos": clusters.num_videos,
        "num_groups": clusters.num_groups,
        "observed_steps": features.grid.observed_steps,
        "window_steps": window_steps,
        "latent_space": [run.record["feature_sets"]["encoder"]["name"], asdict(features.transform)],
        "future_camera_poses": "not used",
        "interval": INTERVAL_METHOD,
        "horizons": [
            {
                "steps": steps,
                "windows": -(-steps // window_steps),
                **_seconds(clips, features, steps),
                **figures_by_kind(table.scores, steps, clusters),
                "over_clips": figures_over_clips(table, step=steps),
            }
            for steps in all_steps
        ],
        "per_s": figures_by_kind(table.scores, SLOPE, clusters),
        "over_clips": table.over_clips,
    }
    write_json(run_dir / f"rollout-{split_name}.json", result)
    return RolledOut(result, table, run.trained_on)


def _scored(
    run: TrainedRun,
    features: Features,
    clips: Sequence[ClipRow],
    all_steps: Sequence[int],
    record: Mapping[str, Any],
    *,
    device: str,
    progress: Progress,
) -> ClipTable:
    """The clips, and their scores over the steps up to each horizon with their slopes."""
    target = choose_device(device)
    model = run.model().to(target)
    rows: list[pa.Table] = []
    parts: dict[Score, list[Floats]] = {}
    gallery = Gallery.of(features, clips, device=target) if features.reads_latents else None
    progress.begin("roll out", total=len(clips), unit="clips")
    for part, batch, predicted in predictions(run, model, features, clips, device=target):
        columns = clip_columns(part, features, grouping=record["division"]["grouping"])
        counts = counted_frames(batch)
        columns |= {name: numbers(values.cpu().numpy()) for name, values in counts.items()}
        rows.append(pa.table(columns))
        times_s = horizons_s(part, features)
        views = view_columns(predicted, batch, part, features, horizons=all_steps)
        told: list[dict[str, Tensor]] = [{} for _ in all_steps]
        if gallery is not None:
            told = gallery.columns(predicted, batch.latents[1], part, horizons=all_steps)
        for steps, seen, ranked in zip(all_steps, views, told, strict=True):
            found = score_columns(predicted, batch, joints=joint_names(model), steps=steps) | seen | ranked
            for method, metric in product(predicted, METRICS):
                if (column := found.get(f"{method}_{metric}")) is not None:
                    parts.setdefault(Score(method, metric, steps), []).append(column.cpu().numpy())
                curve = found.get(f"{method}_{metric}_by_step")
                if curve is not None and steps == all_steps[-1]:
                    slopes = slopes_per_s(curve.cpu().numpy(), times_s[:, :steps])
                    parts.setdefault(Score(method, metric, SLOPE), []).append(slopes)
        progress.advance(len(part))
    scores = {score: np.concatenate(values) for score, values in parts.items()}
    over_clips = {"future": gallery.figures(clips)} if gallery else {}
    return ClipTable(record, pa.concat_tables(rows), scores, over_clips)


def slopes_per_s(errors: Floats, times_s: Floats) -> Floats:
    """Slope `(clip,)` of the line of least squares through `(clip, step)` errors over seconds.

    Steps without an error are left out; NaN where fewer than two are left.
    """
    known = ~np.isnan(errors)
    counts = known.sum(axis=1, keepdims=True)
    enough = counts[:, 0] > 1
    times = np.where(known, times_s, 0.0)
    values = np.where(known, errors, 0.0)
    count = np.maximum(counts, 1)
    times = np.where(known, times - times.sum(axis=1, keepdims=True) / count, 0.0)
    values = np.where(known, values - values.sum(axis=1, keepdims=True) / count, 0.0)
    spread = np.where(enough, (times**2).sum(axis=1), 1.0)
    slopes: Floats = np.where(enough, (times * values).sum(axis=1) / spread, np.nan)
    return slopes


def _seconds(clips: Sequence[ClipRow], features: Features, steps: int) -> dict[str, float]:
    """Means over clips: the middle of the horizon's last step, and its last frame."""
    windows, tubelet = features.windows, features.tubelet
    middles = [step_horizons_s(clip, windows=windows, tubelet=tubelet)[steps - 1] for clip in clips]
    ends = [frames_ahead_s(clip, windows=windows)[steps * tubelet - 1] for clip in clips]
    return {"seconds": float(np.mean(middles)), "last_frame_s": float(np.mean(ends))}
