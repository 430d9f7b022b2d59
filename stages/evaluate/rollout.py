"""Rollout of a trained run: its predicted latents become its context, window by window, to any horizon.

RUN/rollout-<split>.json   per horizon, in latent steps: means over clips with 95 % intervals

At each horizon all methods are measured over the steps up to it, against the windows that the cache holds. A
feature set with more windows than the run learned from serves it. Clips whose video ends before the farthest
horizon are in no such set: they are left out of all horizons, and counted.
Nothing of the future enters a prediction: the thinker's states are those of the split, joints are predicted
in the camera frame of the last observed frame, and no later camera pose is read for it.
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from thinkjepa.cache import ClipRow
from thinkjepa.stages.data.partition import as_split_name, group_of
from thinkjepa.stages.device import choose_device
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.evaluation import (
    DESCRIBING,
    describe,
    joint_names,
    predictions,
    rows_of,
    score_columns,
)
from thinkjepa.stages.evaluate.metrics import METRICS, frames_ahead_s, step_horizons_s
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.evaluate.scores import (
    INTERVAL_METHOD,
    Clusters,
    Floats,
    Score,
    Scores,
    figures_by_kind,
)
from thinkjepa.stages.json_files import write_json
from thinkjepa.stages.progress import NoProgress, Progress
from thinkjepa.stages.train.data.features import Features

ROLLOUT_SCHEMA = "thinkjepa.rollout.v1"


def evaluate_rollout(
    run_dir: Path,
    *,
    horizons: Sequence[int],
    split: str = "test",
    cache_dir: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Metrics of a run over the first `horizons` latent steps of the future, written to the run and returned.

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
    scores = _scores(run, features, clips, all_steps, device=device, progress=progress or NoProgress())
    record = describe(run, features, split_name, clips)
    grouping = record["division"]["grouping"]
    clusters = Clusters(
        groups=[group_of(clip.video, grouping) for clip in clips],
        videos=[clip.video_digest for clip in clips],
    )
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
                **figures_by_kind(scores, steps, clusters),
            }
            for steps in all_steps
        ],
    }
    write_json(run_dir / f"rollout-{split_name}.json", result)
    return result


def _scores(
    run: TrainedRun,
    features: Features,
    clips: Sequence[ClipRow],
    all_steps: Sequence[int],
    *,
    device: str,
    progress: Progress,
) -> Scores:
    """Scores over the steps up to each horizon, of all clips."""
    target = choose_device(device)
    model = run.model().to(target)
    parts: dict[Score, list[Floats]] = {}
    progress.begin("roll out", total=len(clips), unit="clips")
    for part, batch, predicted in predictions(run, model, features, clips, device=target):
        for steps in all_steps:
            columns = score_columns(predicted, batch, joints=joint_names(model), steps=steps)
            for method, metric in product(predicted, METRICS):
                if (column := columns.get(f"{method}_{metric}")) is not None:
                    parts.setdefault(Score(method, metric, steps), []).append(column.cpu().numpy())
        progress.advance(len(part))
    return {score: np.concatenate(values) for score, values in parts.items()}


def _seconds(clips: Sequence[ClipRow], features: Features, steps: int) -> dict[str, float]:
    """Means over clips: the middle of the horizon's last step, and its last frame."""
    windows, tubelet = features.windows, features.tubelet
    middles = [step_horizons_s(clip, windows=windows, tubelet=tubelet)[steps - 1] for clip in clips]
    ends = [frames_ahead_s(clip, windows=windows)[steps * tubelet - 1] for clip in clips]
    return {"seconds": float(np.mean(middles)), "last_frame_s": float(np.mean(ends))}
