"""Clips that a report shows: which, the hands that runs predicted of them, what their thinker saw and said.

Predicted hands are those of the evaluations' tables: no run forecasts again for its video. Only where a run
reads slots is its forecast of the shown clips repeated, to record the attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from thinkjepa.cache import CacheError, ClipRow, FeatureCache
from thinkjepa.pipeline.picture.clip_content import ClipContent, clip_content
from thinkjepa.pipeline.report.markdown import VERDICT_METRICS, Comparison, ranked_models
from thinkjepa.pipeline.report.names import find_clip_id
from thinkjepa.stages.data.trajectories import clip_trajectory, reference_frame
from thinkjepa.stages.device import choose_device
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.compared.groups import EvaluatedRun
from thinkjepa.stages.evaluate.details.attended import Attended, attended
from thinkjepa.stages.evaluate.evaluation import rows_of
from thinkjepa.stages.evaluate.metrics import METRICS, Metric
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.evaluate.scores import Score
from thinkjepa.stages.evaluate.table import StoredPrediction, read_predictions, table_path
from thinkjepa.stages.predict.frames import ChosenFrames
from thinkjepa.stages.predict.prediction import PredictedHands
from thinkjepa.stages.train.data.feature_sets import find_serving
from thinkjepa.stages.train.data.features import Features

MOST_RUNS = 4
"""Runs whose hands are drawn side by side."""

ASKED_FOR = "asked for"


@dataclass(frozen=True, slots=True)
class ShownRun:
    """The best run of a group of a comparison, by the figure of validation clips that ranks groups."""

    group: str
    run: TrainedRun
    evaluated: EvaluatedRun


@dataclass(frozen=True, slots=True)
class ShownClip:
    """A clip with all that is shown of it. What could not be had is None, with the reason."""

    role: str
    """`best`, `median` or `worst` of the best run, or `asked for`."""
    clip: ClipRow
    scores: Mapping[str, float | None]
    """The metric that ranks clips, by method: those of the shown runs, and baselines."""
    frames: ChosenFrames
    hands: Mapping[str, PredictedHands]
    """Hands by group; empty where no run predicts any."""
    seen: ClipContent | None
    """The thinker's frames and words; None where no run has a thinker."""
    attended: Attended | None


@dataclass(frozen=True, slots=True)
class Shown:
    """The clips of a report, and the runs that they are shown of."""

    metric: Metric
    runs: tuple[ShownRun, ...]
    reader: ShownRun | None
    """The run whose attention over slots is shown. None where no run reads slots."""
    clips: tuple[ShownClip, ...]


def shown_runs(
    comparison: Comparison, evaluated: Sequence[EvaluatedRun], run_dirs: Sequence[Path]
) -> list[ShownRun]:
    """One run of each group, the best group first; `run_dirs` are the folders of `evaluated`."""
    by_name = {run.name: (run, path) for run, path in zip(evaluated, run_dirs, strict=True)}
    runs_of = {group["name"]: group["runs"] for group in comparison["groups"]}
    ranking = comparison["ranking"]
    figure = ranking["sorted_by"] if ranking and ranking["clips"] == "validation" else ""
    chosen = []
    for model in ranked_models(comparison):
        own = [by_name[name] for name in runs_of[model["group"]]]
        run, path = min(own, key=lambda item: item[0].validation.get(figure, 0.0))
        chosen.append(ShownRun(model["group"], TrainedRun.open(path), run))
    return chosen


def choose_clips(run: EvaluatedRun, clip_ids: Sequence[str], metric: Metric) -> list[tuple[str, str]]:
    """`(role, clip id)` of the best, the median and the worst of some clips, each clip once.

    Clips without a score are left out. Equal scores are in the order of ids.
    """
    values = dict(zip(run.table.clip_ids, run.table.scores[Score("model", metric.name)], strict=True))
    known = sorted(
        (value if not metric.better_when_larger else -value, clip_id)
        for clip_id in clip_ids
        if not math.isnan(value := float(values[clip_id]))
    )
    if not known:
        return []
    roles = {(len(known) - 1) // 2: "median", len(known) - 1: "worst", 0: "best"}
    order = {"best": 0, "median": 1, "worst": 2}
    return sorted(((role, known[index][1]) for index, role in roles.items()), key=lambda item: order[item[0]])


def collect_clips(
    comparison: Comparison,
    runs: Sequence[ShownRun],
    *,
    named: Sequence[str],
    videos: Path | None,
    cache_dir: Path | None,
    device: str,
) -> Shown:
    """The clips `named`, or by default the best, the median and the worst one of the first run.

    Raises CacheError where a name means no clip, StageError where it means one that was not compared.
    """
    best = runs[0]
    features = best.run.features(cache_dir)
    shared = sorted(set.intersection(*(set(run.evaluated.table.clip_ids) for run in runs)))
    metric = _metric(comparison)
    chosen = (
        [(ASKED_FOR, _named(features.cache, name, shared)) for name in named]
        if named
        else choose_clips(best.evaluated, shared, metric)
    )
    clip_ids = [clip_id for _, clip_id in chosen]
    drawn = runs[:MOST_RUNS]
    predictions = {
        run.group: read_predictions(table_path(run.run.path, comparison["split"]), clip_ids) for run in drawn
    }
    reader, looks = _attention(runs, clip_ids, cache_dir=cache_dir, device=device)
    thinker_set = _thinker_set(features.cache, runs)
    clips = []
    for (role, clip_id), clip in zip(chosen, rows_of(clip_ids, features), strict=True):
        stored = {group: found[clip_id] for group, found in predictions.items() if clip_id in found}
        clips.append(
            ShownClip(
                role=role,
                clip=clip,
                scores=_scores(drawn, clip_id, metric),
                frames=_chosen_frames(clip),
                hands=_hands(best.run, features, clip, stored),
                seen=_seen(features.cache, clip_id, thinker_set, videos),
                attended=looks.get(clip_id),
            )
        )
    return Shown(metric, tuple(drawn), reader, tuple(clips))


def _metric(comparison: Comparison) -> Metric:
    """The metric that ranks clips: of joints where the best model predicts any, else of latents."""
    best = ranked_models(comparison)[0]["metrics"]
    return next(METRICS[name] for name in VERDICT_METRICS.values() if name in best)


def _named(cache: FeatureCache, name: str, shared: Sequence[str]) -> str:
    clip_id = find_clip_id(cache, name)
    if clip_id not in shared:
        raise StageError(
            f"--report-clips: {name!r} is clip {clip_id!r}, which is none of the {len(shared)} compared "
            "clips: name one of the evaluated split"
        )
    return clip_id


def _scores(runs: Sequence[ShownRun], clip_id: str, metric: Metric) -> dict[str, float | None]:
    """Each run's score of a clip by group, then those of the methods that need no training."""
    wanted = [(run.group, "model", run) for run in runs]
    wanted += [(method.replace("_", " "), method, runs[0]) for method in metric.to_beat]
    found: dict[str, float | None] = {}
    for name, method, run in wanted:
        table = run.evaluated.table
        if (values := table.scores.get(Score(method, metric.name))) is not None:
            value = float(values[table.clip_ids.index(clip_id)])
            found[name] = None if math.isnan(value) else value
    return found


def _chosen_frames(clip: ClipRow) -> ChosenFrames:
    """The frames of a clip's first future window, as a prediction of a new video has them."""
    times_s = (*clip.observed_times_s, *clip.future_times_s[0])
    return ChosenFrames(
        split_frame=clip.split_frame,
        split_time_s=clip.split_time_s,
        thinker=clip.thinker_frames,
        observed=clip.observed_frames,
        observed_times_s=clip.observed_times_s,
        future=clip.future_frames[0],
        future_times_s=clip.future_times_s[0],
        fps=(len(times_s) - 1) / max(times_s[-1] - times_s[0], 1e-3),
    )


def _hands(
    run: TrainedRun, features: Features, clip: ClipRow, stored: Mapping[str, StoredPrediction]
) -> dict[str, PredictedHands]:
    """The stored hands next to the true ones. Empty where no run predicts hands."""
    if features.supervision is None or run.shape.head is None:
        return {}
    labels, joints = features.supervision.labels_of(clip.clip_id), run.shape.head.joints
    truth = clip_trajectory(
        labels,
        joints,
        observed_frames=clip.observed_frames,
        future_frames=clip.future_frames[:1],
        min_confidence=run.min_confidence,
    )
    return {
        group: PredictedHands(
            joints=joints,
            positions_m=prediction.joints_m,
            reference_frame=reference_frame(labels),
            labels=labels,
            true_m=truth.future_m[0],
            true_confidence=truth.future_confidence[0],
            camera_pose=prediction.camera_pose,
            last_pose_m=None,
        )
        for group, prediction in stored.items()
    }


def _attention(
    runs: Sequence[ShownRun], clip_ids: Sequence[str], *, cache_dir: Path | None, device: str
) -> tuple[ShownRun | None, dict[str, Attended]]:
    """The first run that reads slots of the clips themselves, and its attention by clip."""
    for run in runs:
        if not run.run.shape.reading.slots or run.run.guidance_source.kind != "own":
            continue
        target = choose_device(device)
        features, model = run.run.features(cache_dir), run.run.model().to(target)
        found = {
            clip_id: attended(model, features, features.batch([clip_id], target), clip_id)
            for clip_id in clip_ids
        }
        return run, {clip_id: looked for clip_id, looked in found.items() if looked is not None}
    return None, {}


def _thinker_set(cache: FeatureCache, runs: Sequence[ShownRun]) -> str | None:
    """The name of the thinker's set that the first guided run read."""
    records = (run.run.record["feature_sets"].get("thinker") for run in runs)
    record = next(filter(None, records), None)
    return find_serving(cache, "thinker", record).name if record else None


def _seen(
    cache: FeatureCache, clip_id: str, thinker_set: str | None, videos: Path | None
) -> ClipContent | None:
    """The thinker's frames and words of a clip."""
    if thinker_set is None:
        return None
    rows = cache.select(thinker_set).only([clip_id])
    if not rows:
        raise CacheError(f"clip {clip_id!r} is not in set {thinker_set} any more: extract it again")
    return clip_content(cache, rows[0], thinker_set=thinker_set, encoder_set=None, videos=videos)
