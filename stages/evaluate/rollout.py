"""A trained run rolled out: its predicted latents become its context, window by window, to any horizon.

RUN/rollout-<split>.json   per horizon, in latent steps: means over clips with 95 % intervals

At each horizon all methods are measured over the steps up to it, against what the cache holds of these
windows. Nothing of the future goes into a forecast: the thinker's states are those of the split, joints are
predicted in the camera frame of the last observed frame, and no later camera pose is read for it.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from thinkjepa.cache import ClipRow
from thinkjepa.stages.data.partition import as_split_name
from thinkjepa.stages.device import choose_device
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.baselines import FORECASTS, Predicted
from thinkjepa.stages.evaluate.bootstrap import Floats, VideoBootstrap
from thinkjepa.stages.evaluate.evaluation import (
    describe,
    keypoint_places,
    predictions,
    rows_of,
    score_columns,
)
from thinkjepa.stages.evaluate.metrics import (
    LATENT_METRICS,
    TRAJECTORY_METRICS,
    frames_ahead_s,
    step_horizons_s,
)
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.evaluate.table import DESCRIBING, figures, interval_method
from thinkjepa.stages.json_files import write_json
from thinkjepa.stages.progress import NoProgress, Progress
from thinkjepa.stages.train.data.features import Batch, Features

ROLLOUT_SCHEMA = "thinkjepa.rollout.v1"
METRICS = {"latent": LATENT_METRICS, "trajectory": TRAJECTORY_METRICS}

Scores = dict[tuple[int, str, str], list[Floats]]
"""By horizon, method and metric: values `(clip,)` of each part."""


def evaluate_rollout(
    run_dir: Path,
    *,
    horizons: Sequence[int],
    split: str = "test",
    cache_dir: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Metrics of a run over the first `horizons` latent steps of the future; written to the run and returned.

    Raises StageError where the cache holds fewer future windows than the farthest horizon needs.
    """
    if not horizons or min(horizons) < 1:
        raise StageError("--rollout: give horizons in latent steps, 1 or more, such as 4,8,16,32")
    side, run = as_split_name(split), TrainedRun.open(run_dir)
    features = run.features(cache_dir)
    window_steps = features.grid.future_steps
    features = features.reaching(windows=-(-max(horizons) // window_steps))
    clips = rows_of(run.clip_ids(side), features)
    place = choose_device(device)
    model = run.model().to(place)
    keypoints, scores = keypoint_places(model), Scores()
    progress = progress or NoProgress()
    progress.begin("roll out", total=len(clips), unit="clips")
    for part, batch, predicted in predictions(run, model, features, clips, device=place):
        for steps in sorted(set(horizons)):
            collect(scores, steps, cut(predicted, steps), cut_batch(batch, steps), keypoints)
        progress.advance(len(part))
    record, bootstrap = describe(run, features, side, clips), VideoBootstrap([c.video_digest for c in clips])
    result = {
        **{name: record[name] for name in DESCRIBING},
        "schema": ROLLOUT_SCHEMA,
        "num_clips": len(clips),
        "num_videos": bootstrap.num_videos,
        "observed_steps": features.grid.observed_steps,
        "window_steps": window_steps,
        "latent_space": [features.encoder.name, asdict(features.transform)],
        "future_camera_poses": "not used",
        "interval": interval_method(),
        "horizons": [
            {
                "steps": steps,
                "windows": -(-steps // window_steps),
                **_seconds(clips, features, steps),
                **{kind: _of_kind(scores, steps, names, bootstrap) for kind, names in METRICS.items()},
            }
            for steps in sorted(set(horizons))
        ],
    }
    write_json(run_dir / f"rollout-{side}.json", result)
    return result


def _seconds(clips: Sequence[ClipRow], features: Features, steps: int) -> dict[str, float]:
    """Means over clips: the middle of the horizon's last step, and its last frame."""
    windows, tubelet = features.windows, features.tubelet
    middles = [step_horizons_s(clip, windows=windows, tubelet=tubelet)[steps - 1] for clip in clips]
    ends = [frames_ahead_s(clip, windows=windows)[steps * tubelet - 1] for clip in clips]
    return {"seconds": float(np.mean(middles)), "last_frame_s": float(np.mean(ends))}


def cut(predicted: dict[str, Predicted], steps: int) -> dict[str, Predicted]:
    """Forecasts of the first steps alone."""
    return {
        method: Predicted(
            None if item.latents is None else item.latents[:, :steps],
            None if item.joints_m is None else item.joints_m[:, :steps],
        )
        for method, item in predicted.items()
    }


def cut_batch(batch: Batch, steps: int) -> Batch:
    """What came in the first steps."""
    joints = batch.trajectory
    if joints is not None:
        joints = replace(
            joints,
            future_m=joints.future_m[:, :steps],
            future_confidence=joints.future_confidence[:, :steps],
        )
    return replace(batch, future=batch.future[:, :steps], trajectory=joints)


def collect(
    scores: Scores, steps: int, predicted: dict[str, Predicted], batch: Batch, keypoints: Sequence[int]
) -> None:
    """Add a part's scores at one horizon."""
    columns = score_columns(predicted, batch, keypoints=keypoints)
    for method in predicted:
        for name in (*LATENT_METRICS, *TRAJECTORY_METRICS):
            if (column := columns.get(f"{method}_{name}")) is not None:
                values = column.to_numpy(zero_copy_only=False).astype(np.float64)
                scores.setdefault((steps, method, name), []).append(values)


def _of_kind(
    scores: Scores, steps: int, names: Sequence[str], bootstrap: VideoBootstrap
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for method in FORECASTS:
        known = {
            name: np.concatenate(scores[steps, method, name])
            for name in names
            if (steps, method, name) in scores
        }
        if values := figures(known, bootstrap):
            found[method] = dict(values)
    return found
