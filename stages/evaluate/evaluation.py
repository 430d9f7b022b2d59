"""Measure a trained run on one side of its split, beside methods without training on the same clips.

RUN/eval-<split>.parquet   a row per clip: scores and predicted joints, see `clip_table`
RUN/eval-<split>.json      means over clips with 95 % intervals, and curves over the horizon
RUN/<split>.json           the few numbers of it that fit a line, see `headline`
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from thinkjepa.cache import ClipRow
from thinkjepa.stages.data.joints import KEYPOINTS
from thinkjepa.stages.data.partition import SplitName, as_split_name
from thinkjepa.stages.data.tracked_files import labels_digest
from thinkjepa.stages.device import choose_device
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.baselines import Predicted, known_at_split, partners_of, predict_all
from thinkjepa.stages.evaluate.metrics import (
    counted_joint_frames,
    frames_ahead_s,
    latent_metrics,
    step_horizons_s,
    trajectory_metrics,
)
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.evaluate.table import (
    EVALUATION_SCHEMA,
    ClipTable,
    ClipTableWriter,
    headline,
    lists,
    numbers,
    summarise,
    table_path,
)
from thinkjepa.stages.json_files import read_json, write_json
from thinkjepa.stages.progress import NoProgress, Progress
from thinkjepa.stages.train.data.features import Batch, Features, TrajectoryBatch
from thinkjepa.stages.train.model.forecast import ForecastModel

Columns = dict[str, pa.Array]


def evaluate(
    run_dir: Path,
    *,
    split: str = "test",
    cache_dir: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Metrics of a run on `split` (train, validation or test); written to the run and returned.

    Arithmetic is fp32. `cache_dir` overrides the cache that the run names; `device` is as in
    `choose_device`. Clips are those of the run's own split, all of which must still have features.
    """
    side = as_split_name(split)
    run = TrainedRun.open(run_dir)
    features = run.features(cache_dir)
    clips = rows_of(run.clip_ids(side), features)
    progress = progress or NoProgress()
    progress.begin("evaluate", total=len(clips), unit="clips")
    with ClipTableWriter(table_path(run_dir, side), describe(run, features, side, clips)) as table:
        for part, columns in measured(run, features, clips, device=choose_device(device)):
            table.append({**clip_columns(part, features), **columns})
            progress.advance(len(part))
    result = summarise(ClipTable.read(table_path(run_dir, side)))
    write_json(run_dir / f"eval-{side}.json", result)
    write_json(run_dir / f"{side}.json", headline(result))
    return result


def describe(
    run: TrainedRun, features: Features, side: SplitName, clips: Sequence[ClipRow]
) -> dict[str, Any]:
    """What is evaluated, without times and paths."""
    division, head = read_json(run.path / "split.json"), run.shape.head
    return {
        "schema": EVALUATION_SCHEMA,
        "split": side,
        "variant": run.variant,
        "seed": run.record["settings"]["seed"],
        "settings": run.record["settings"],
        "feature_sets": run.record["feature_sets"],
        "checkpoint_sha256": run.record["checkpoint"]["sha256"],
        "division": {"rule": division["rule"], "grouping": division["grouping"]},
        "split_sha256": run.record["split_sha256"],
        "joints": list(head.joints) if head else [],
        "keypoints": [name for name in KEYPOINTS if head and name in head.joints],
        "reference_frames": list(features.supervision.reference_frames) if features.supervision else [],
        "labels": labels_digest(features.cache, {clip.video_digest for clip in clips}) if head else "",
    }


@torch.no_grad()
def predictions(
    run: TrainedRun,
    model: ForecastModel,
    features: Features,
    clips: Sequence[ClipRow],
    *,
    device: torch.device,
) -> Iterator[tuple[Sequence[ClipRow], Batch, dict[str, Predicted]]]:
    """What every method forecasts of all clips, in their order, part by part, beside what came."""
    partners = partners_of(clips) if run.shape.thinker is not None else {}
    for start in range(0, len(clips), run.clips_per_forward):
        part = clips[start : start + run.clips_per_forward]
        batch = features.batch([clip.clip_id for clip in part], device)
        known = known_at_split(features, part, batch, partners=partners)
        yield part, batch, predict_all(model, known, future_steps=batch.future.shape[1])


def measured(
    run: TrainedRun, features: Features, clips: Sequence[ClipRow], *, device: torch.device
) -> Iterator[tuple[Sequence[ClipRow], Columns]]:
    """Scores and predictions of all clips, in their order, part by part."""
    model = run.model().to(device)
    for part, batch, predicted in predictions(run, model, features, clips, device=device):
        columns = score_columns(predicted, batch, keypoints=keypoint_places(model))
        if batch.trajectory is not None:
            columns |= joint_columns(predicted["model"], batch.trajectory)
            columns |= {"camera_pose": _camera_poses(features, part)}
        yield part, columns


def score_columns(predicted: dict[str, Predicted], batch: Batch, *, keypoints: Sequence[int]) -> Columns:
    """Each method's scores: a column for each metric, and one for its curve over the horizon."""
    columns: Columns = {}
    for method, forecast in predicted.items():
        scores: dict[str, Tensor] = {}
        if forecast.latents is not None:
            for name, values in latent_metrics(forecast.latents, batch.future).items():
                scores |= {name: values.mean(dim=1), f"{name}_by_step": values}
        if forecast.joints_m is not None and (target := batch.trajectory) is not None:
            counted = counted_joint_frames(target.future_confidence, target.last_known)
            scores |= trajectory_metrics(forecast.joints_m, target.future_m, counted, keypoints=keypoints)
        columns |= {f"{method}_{name}": _column(values) for name, values in scores.items()}
    return columns


def joint_columns(forecast: Predicted, target: TrajectoryBatch) -> Columns:
    """How many joint-frames there are and count, and where the model puts them."""
    assert forecast.joints_m is not None, "a run with labels has a head"
    counted = counted_joint_frames(target.future_confidence, target.last_known)
    return {
        "labelled_joint_frames": _column((target.future_confidence > 0).flatten(1).sum(dim=1)),
        "counted_joint_frames": _column(counted.flatten(1).sum(dim=1)),
        "predicted_joints_m": _column(forecast.joints_m.float()),
    }


def clip_columns(clips: Sequence[ClipRow], features: Features) -> Columns:
    """Which clips, and when their future frames are."""
    windows, tubelet = features.windows, features.tubelet
    horizons = [step_horizons_s(clip, windows=windows, tubelet=tubelet) for clip in clips]
    return {
        **{
            name: pa.array([getattr(clip, name) for clip in clips])
            for name in ("clip_id", "video", "video_digest", "split_frame", "split_time_s")
        },
        "future_frames": lists(np.array([np.concatenate(clip.future_frames[:windows]) for clip in clips])),
        "future_times_s": lists(np.array([np.concatenate(clip.future_times_s[:windows]) for clip in clips])),
        "horizon_s": lists(np.array(horizons)),
        "last_frame_s": numbers(np.array([frames_ahead_s(clip, windows=windows)[-1] for clip in clips])),
    }


def _camera_poses(features: Features, clips: Sequence[ClipRow]) -> pa.Array:
    assert features.supervision is not None, "a run with joints has labels"
    all_poses = (features.supervision.labels_of(clip.clip_id).camera_poses for clip in clips)
    poses = [
        None if found is None else found[clip.observed_frames[-1]].reshape(-1).tolist()
        for clip, found in zip(clips, all_poses, strict=True)
    ]
    return pa.array(poses, pa.list_(pa.float64()))


def _column(values: Tensor) -> pa.Array:
    array = values.cpu().numpy()
    return numbers(array) if array.ndim == 1 else lists(array)


def keypoint_places(model: ForecastModel) -> list[int]:
    """Where EgoDex's keypoints stand among the joints of the head."""
    joints = model.head.shape.joints if model.head else ()
    return [place for place, name in enumerate(joints) if name in KEYPOINTS]


def rows_of(clip_ids: Sequence[str], features: Features) -> list[ClipRow]:
    """The clips, in this order. Raises StageError where one has no features."""
    rows = {clip.clip_id: clip for clip in features.clips.only(clip_ids)}
    if lost := [clip_id for clip_id in clip_ids if clip_id not in rows]:
        needed = "features and labels" if features.supervision else "features"
        raise StageError(
            f"{len(lost)} of {len(clip_ids)} clips of the run have no {needed} in cache "
            f"{str(features.cache.path)!r}, the first is {lost[0]!r}: extract them, name the run's own cache "
            "with --cache-dir, or train again"
        )
    return [rows[clip_id] for clip_id in clip_ids]
