"""Evaluation of a trained run on one split of its clips, next to methods without training.

RUN/eval-<split>.parquet   a row per clip: scores and predicted joints, see `table`
RUN/eval-<split>.json      means over clips with 95 % intervals, curves over the horizon, errors by joint
RUN/<split>.json           the few numbers of it that fit a line, see `headline`
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from thinkjepa.cache import ClipRow
from thinkjepa.stages.data.groups import clip_groups
from thinkjepa.stages.data.history import history_s
from thinkjepa.stages.data.joints import KEYPOINTS
from thinkjepa.stages.data.partition import SplitName, as_split_name
from thinkjepa.stages.data.tracked_files import labels_digest
from thinkjepa.stages.device import choose_device
from thinkjepa.stages.display import DECIMALS
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.baselines import (
    METHODS,
    Predicted,
    inputs_at_split,
    predict_all,
    readout_ceiling,
)
from thinkjepa.stages.evaluate.details.latents import Gallery, LatentSpread
from thinkjepa.stages.evaluate.details.views import view_columns
from thinkjepa.stages.evaluate.learned import learn, num_lacking, reaching_ridge
from thinkjepa.stages.evaluate.metrics import (
    POSE_BASELINES,
    counted_joint_frames,
    frames_ahead_s,
    horizon_summary,
    latent_metrics,
    step_horizons_s,
    time_summary,
    trajectory_metrics,
)
from thinkjepa.stages.evaluate.over_clips import JointErrors, figures_over_clips, skills
from thinkjepa.stages.evaluate.partners import permutations_of
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.evaluate.scores import figures_by_kind
from thinkjepa.stages.evaluate.strata import (
    Stratum,
    beyond_window_s,
    strata_of,
    task_seen,
    task_strata,
    training_tasks,
)
from thinkjepa.stages.evaluate.table import (
    EVALUATION_SCHEMA,
    ClipTable,
    ClipTableWriter,
    lists,
    numbers,
    table_path,
)
from thinkjepa.stages.intervals import INTERVAL_METHOD, Floats
from thinkjepa.stages.json_files import write_json
from thinkjepa.stages.progress import NoProgress, Progress
from thinkjepa.stages.train.data.features import Batch, Features
from thinkjepa.stages.train.model.forecast import ForecastModel

DESCRIBING = (
    "schema",
    "split",
    "variant",
    "seed",
    "checkpoint_sha256",
    "joints",
    "keypoints",
    "reference_frames",
    "training_clips_lacking",
)
"""Entries of an evaluation's record that are repeated next to the figures; run.json has the rest."""


def evaluate(
    run_dir: Path,
    *,
    split: str = "test",
    cache_dir: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Metrics of a run on `split` (train, validation or test), written to the run and returned.

    Arithmetic is fp32. `cache_dir` overrides the cache that the run names; `device` is as in
    `choose_device`. Clips are those of the run's own split, all of which must still have features.
    """
    split_name = as_split_name(split)
    run = TrainedRun.open(run_dir)
    features = run.features(cache_dir)
    clips = rows_of(run.clip_ids(split_name), features)
    target = choose_device(device)
    model = run.model().to(target)
    progress = progress or NoProgress()
    record = describe(run, features, split_name, clips)
    grouping = record["division"]["grouping"]
    progress.begin("evaluate", total=len(clips), unit="clips")
    tasks = training_tasks(features, run.clip_ids("train"))
    joint_errors, spread = JointErrors(), LatentSpread()
    gallery = Gallery.of(features, clips, device=target) if features.reads_latents else None
    with ClipTableWriter(table_path(run_dir, split_name), record) as table:
        for part, batch, predicted in predictions(run, model, features, clips, device=target):
            if batch.trajectory is not None:
                joint_errors.add(predicted, batch.trajectory)
            columns = score_columns(predicted, batch, joints=joint_names(model))
            if gallery is not None:
                _, future = batch.latents
                spread.add(predicted, future)
                columns |= gallery.columns(predicted, future, part)[0]
            columns |= view_columns(predicted, batch, part, features)[0]
            columns |= _joint_columns(predicted["model"], batch)
            table.append(
                {
                    **clip_columns(part, features, grouping=grouping),
                    "task_seen": numbers(task_seen(part, tasks)),
                    **{name: _column(values) for name, values in columns.items()},
                    **_camera_poses(part, features),
                }
            )
            progress.advance(len(part))
        if gallery is not None:
            figures = spread.figures()
            table.add_over_clips({**figures, "future": figures["future"] | gallery.figures(clips)})
        table.add_by_joint(joint_errors.curves(record["joints"]))
    result = summarize(ClipTable.read(table_path(run_dir, split_name)))
    write_json(run_dir / f"eval-{split_name}.json", result)
    write_json(run_dir / f"{split_name}.json", headline(result))
    return result


def describe(
    run: TrainedRun, features: Features, split_name: SplitName, clips: Sequence[ClipRow]
) -> dict[str, Any]:
    """The record of what is evaluated, without times and paths."""
    division, head = run.division, run.shape.head
    return {
        "schema": EVALUATION_SCHEMA,
        "split": split_name,
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
        "training_clips_lacking": num_lacking(features, run.clip_ids("train")),
        "labels": labels_digest(features.cache, {clip.video_digest for clip in clips}) if head else "",
    }


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


@torch.no_grad()
def predictions(
    run: TrainedRun,
    model: ForecastModel,
    features: Features,
    clips: Sequence[ClipRow],
    *,
    device: torch.device,
) -> Iterator[tuple[Sequence[ClipRow], Batch, dict[str, Predicted]]]:
    """Yield (clips, batch with the ground truth, predictions by method), batch by batch.

    Methods that see the future are among them, marked in `METHODS`.
    """
    has_own_states = run.shape.thinker is not None and features.source.tells_of_clips
    permutations = permutations_of(clips) if has_own_states else []
    train_ids, validation_ids = run.clip_ids("train"), run.clip_ids("validation")
    learned, ridge = learn(features, train_ids, device=device), None
    if model.head is not None:
        ridge = reaching_ridge(model.head.ridge, features, train_ids, validation_ids).to(device)
    for start in range(0, len(clips), run.clips_per_forward):
        part = clips[start : start + run.clips_per_forward]
        batch = features.batch([clip.clip_id for clip in part], device)
        inputs = inputs_at_split(features, part, batch, permutations=permutations, device=device)
        predicted = predict_all(model, inputs, learned, ridge, future_steps=features.future_steps)
        yield part, batch, predicted | readout_ceiling(model, batch)


def score_columns(
    predicted: Mapping[str, Predicted], batch: Batch, *, joints: Sequence[str], steps: int | None = None
) -> dict[str, Tensor]:
    """Scores of the first `steps` latent steps, or of all, by the names that they have in the table.

    `<method>_<metric>` is `(clip,)`, `<method>_<metric>_by_step` is `(clip, step)`.
    """
    columns: dict[str, Tensor] = {}
    for method, found in predicted.items():
        draws = [_scores(draw, batch, joints=joints, steps=steps) for draw in found.draws]
        columns |= {
            f"{method}_{name}": torch.stack([scores[name] for scores in draws]).mean(dim=0)
            for name in draws[0]
        }
    return columns


def _scores(found: Predicted, batch: Batch, *, joints: Sequence[str], steps: int | None) -> dict[str, Tensor]:
    """Scores of one prediction, by the names of metrics."""
    scores: dict[str, Tensor] = {}
    if found.latents is not None:
        _, future = batch.latents
        for name, values in latent_metrics(found.latents[:, :steps], future[:, :steps]).items():
            scores |= {name: values.mean(dim=1), f"{name}_by_step": values}
    if found.joints_m is not None and (truth := batch.trajectory) is not None:
        counted = counted_joint_frames(truth.future_confidence[:, :steps], truth.last_known)
        scores |= trajectory_metrics(
            found.joints_m[:, :steps],
            truth.future_m[:, :steps],
            counted,
            last_pose_m=truth.poses.last_pose_m,
            joints=joints,
        )
    return scores


def joint_names(model: ForecastModel) -> tuple[str, ...]:
    """The joints of the head, none without one."""
    return model.head.shape.joints if model.head else ()


def _joint_columns(predicted: Predicted, batch: Batch) -> dict[str, Tensor]:
    """Numbers of joint-frames, and the predicted joints; empty without labels."""
    if batch.trajectory is None:
        return {}
    assert predicted.joints_m is not None, "a run with labels has a head"
    return {**counted_frames(batch), "predicted_joints_m": predicted.joints_m.float()}


def counted_frames(batch: Batch) -> dict[str, Tensor]:
    """Numbers of labelled and counted joint-frames of each clip; empty without labels."""
    if batch.trajectory is None:
        return {}
    confidence = batch.trajectory.future_confidence
    counted = counted_joint_frames(confidence, batch.trajectory.last_known)
    return {
        "labelled_joint_frames": (confidence > 0).flatten(1).sum(dim=1),
        "counted_joint_frames": counted.flatten(1).sum(dim=1),
    }


def clip_columns(clips: Sequence[ClipRow], features: Features, *, grouping: str) -> dict[str, pa.Array]:
    """The clips with their groups, and the times of their future frames."""
    windows = features.windows
    return {
        **{
            name: pa.array([getattr(clip, name) for clip in clips])
            for name in ("clip_id", "video", "video_digest", "split_frame", "split_time_s")
        },
        "group": pa.array(
            clip_groups([clip.video for clip in clips], [clip.group for clip in clips], grouping)
        ),
        "beyond_window_s": numbers(np.array([beyond_window_s(clip) for clip in clips])),
        "history_s": numbers(np.array([history_s(clip) for clip in clips])),
        "future_frames": lists(np.array([np.concatenate(clip.future_frames[:windows]) for clip in clips])),
        "future_times_s": lists(np.array([np.concatenate(clip.future_times_s[:windows]) for clip in clips])),
        "horizon_s": lists(horizons_s(clips, features)),
        "last_frame_s": numbers(np.array([frames_ahead_s(clip, windows=windows)[-1] for clip in clips])),
    }


def horizons_s(clips: Sequence[ClipRow], features: Features) -> Floats:
    """Seconds from the last observed frame to the middle of each latent step, `(clip, step)`."""
    windows, tubelet = features.windows, features.tubelet
    return np.array([step_horizons_s(clip, windows=windows, tubelet=tubelet) for clip in clips])


def _camera_poses(clips: Sequence[ClipRow], features: Features) -> dict[str, pa.Array]:
    """The camera of each clip's last observed frame; empty without labels."""
    if features.supervision is None:
        return {}
    all_poses = (features.supervision.labels_of(clip.clip_id).camera_poses for clip in clips)
    poses = [
        None if found is None else found[clip.observed_frames[-1]].reshape(-1).tolist()
        for clip, found in zip(clips, all_poses, strict=True)
    ]
    return {"camera_pose": pa.array(poses, pa.list_(pa.float64()))}


def _column(values: Tensor) -> pa.Array:
    array = values.cpu().numpy()
    return numbers(array) if array.ndim == 1 else lists(array)


def summarize(table: ClipTable) -> dict[str, Any]:
    """The content of eval-<split>.json."""
    clusters = table.clusters()
    means: dict[str, dict[str, Any]] = {}
    intervals: dict[str, dict[str, Any]] = {}
    for kind, methods in figures_by_kind(table.scores, 0, clusters).items():
        means[kind] = {
            method: {metric: figure["mean"] for metric, figure in figures.items()}
            for method, figures in methods.items()
        }
        intervals[kind] = {
            method: {metric: [figure["low"], figure["high"]] for metric, figure in figures.items()}
            for method, figures in methods.items()
        }
    return {
        **{name: table.record[name] for name in DESCRIBING},
        "num_clips": len(table.clip_ids),
        "num_videos": clusters.num_videos,
        "num_groups": clusters.num_groups,
        "joint_frames": joint_frames(table),
        **means,
        "over_clips": figures_over_clips(table),
        "intervals": intervals,
        "interval": INTERVAL_METHOD,
        "last_frame": time_summary(table.numbers("last_frame_s")),
        "horizon": _horizon(table),
        "by_history": _by_stratum(table, strata_of(table.numbers("beyond_window_s"))),
        "by_task": _by_stratum(table, task_strata(table.numbers("task_seen"))),
        "ade_m_by_joint": table.by_joint,
    }


def headline(result: Mapping[str, Any]) -> dict[str, float]:
    """The few numbers of an evaluation that fit a line, from the content of eval-<split>.json.

    `ade_m`, `fde_m` and `acc_5cm` of the run, `baseline_m` (the smallest ADE of a method without a trained
    network), `latent` and `persist` (the squared latent error of the run and of latent persistence). What was
    not measured is left out.
    """
    joints, latents = result["trajectory"], result["latent"]
    baselines = [joints[name]["ade_m"] for name in POSE_BASELINES if "ade_m" in joints.get(name, {})]
    found = {name: joints.get("model", {}).get(name) for name in ("ade_m", "fde_m", "acc_5cm")}
    found |= {
        "baseline_m": min(baselines, default=None),
        "latent": latents.get("model", {}).get("l2"),
        "persist": latents.get("latent_persistence", {}).get("l2"),
    }
    return {name: round(value, DECIMALS) for name, value in found.items() if value is not None}


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


def _by_stratum(table: ClipTable, strata: Sequence[Stratum]) -> list[dict[str, Any]]:
    """One record per stratum: its clips, and the figures of each method."""
    clusters = table.clusters()
    known = {score: values for score, values in table.scores.items() if not score.step}
    return [
        {
            **stratum.to_json(),
            **figures_by_kind(
                {score: stratum.of([values])[0] for score, values in known.items()}, 0, clusters
            ),
        }
        for stratum in strata
    ]


def _horizon(table: ClipTable) -> list[dict[str, Any]]:
    """One record per latent step: its horizon in seconds, and each method's means at that step."""
    evaluated = {score.method for score in table.scores}
    records: list[dict[str, Any]] = [
        {**record, **{method: {} for method in METHODS if method in evaluated}}
        for record in horizon_summary(table.lists("horizon_s"))
    ]
    for score, values in table.scores.items():
        known = values[~np.isnan(values)]
        if score.step and len(known):
            records[score.step - 1][score.method][score.metric] = float(known.mean())
    for step, record in enumerate(records, start=1):
        for method, found in skills(table.scores, step=step).items():
            record[method] |= found
    return records
