"""Figures of a run's test clips, a row for each: errors, and whether its decisions are right.

    clip_id, video, group, unseen
    <method>_ade_m, _fde_m              the first window; metres
    <method>_<decision>                 1 where the prediction decides right, else 0: the task says how
    <method>_rollout_ade_<steps>_m      all latent steps up to this one, windows fed back; metres
    <method>_slope_m_per_s              growth of the error over the longest horizon

Methods are the run's model and the baselines that need no run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from evidence.tasks import Decide
from thinkjepa.cache import ClipRow
from thinkjepa.pipeline.sample.expand import FACTS_FILE
from thinkjepa.stages.data.trajectories import to_world
from thinkjepa.stages.evaluate.evaluation import (
    clip_columns,
    horizons_s,
    joint_names,
    predictions,
    rows_of,
    score_columns,
)
from thinkjepa.stages.evaluate.rollout import slopes_per_s
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.train.data.features import Features

Floats = npt.NDArray[np.float64]

METHODS = ("model", "ridge", "constant_pose", "constant_velocity")

FILE = "measured.parquet"


def measure(run_dir: Path, *, cache_dir: Path, videos: Path, decide: Decide, horizons: Sequence[int]) -> Path:
    """Write the figures of a run's test clips to `run_dir` and return the file.

    `horizons` are in latent steps.
    """
    run = TrainedRun.open(run_dir)
    window_steps = run.shape.grid.future_steps
    features = run.features(cache_dir, windows=-(-max(horizons) // window_steps))
    clips, model = rows_of(run.clip_ids("test"), features), run.model()
    facts = json.loads((videos / FACTS_FILE).read_text(encoding="utf-8"))
    joints, tables = joint_names(model), []
    for part, batch, predicted in predictions(run, model, features, clips, device=torch.device("cpu")):
        chosen = {method: predicted[method] for method in METHODS}
        columns: dict[str, Any] = {
            name: column
            for name, column in clip_columns(part, features, grouping="file").items()
            if name in ("clip_id", "video", "group")
        }
        columns["unseen"] = [not facts[clip.video].get("seen_pair", True) for clip in part]
        times_s = horizons_s(part, features)
        for steps in horizons:
            scores = score_columns(chosen, batch, joints=joints, steps=steps)
            for method in METHODS:
                columns[f"{method}_rollout_ade_{steps}_m"] = scores[f"{method}_ade_m"].numpy()
                if steps == max(horizons):
                    curve = scores[f"{method}_ade_m_by_step"].numpy()
                    columns[f"{method}_slope_m_per_s"] = slopes_per_s(curve, times_s[:, :steps])
        scores = score_columns(chosen, batch, joints=joints, steps=window_steps)
        for method in METHODS:
            columns |= {f"{method}_{name}": scores[f"{method}_{name}"].numpy() for name in ("ade_m", "fde_m")}
            found = chosen[method].joints_m
            assert found is not None, "every method here predicts joints"
            right = choices(found.double().numpy(), joints, part, features, facts, decide)
            columns |= {f"{method}_{name}": values for name, values in right.items()}
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), run_dir / FILE)
    return run_dir / FILE


def choices(
    joints_m: Floats,
    joints: Sequence[str],
    clips: Sequence[ClipRow],
    features: Features,
    facts: Mapping[str, Mapping[str, Any]],
    decide: Decide,
) -> dict[str, Floats]:
    """1 where predicted joints `(clip, step, frame, joint, 3)` decide right, else 0, by decision."""
    assert features.supervision is not None, "a run of joints has labels"
    right = []
    for positions_m, clip in zip(joints_m, clips, strict=True):
        world_m = positions_m.reshape(-1, *joints_m.shape[3:])
        poses = features.supervision.labels_of(clip.clip_id).camera_poses
        if poses is not None:
            world_m = to_world(world_m.astype(np.float32), poses[clip.observed_frames[-1]])
        frames = np.concatenate(clip.future_frames[: features.windows])
        right.append(decide(joints, world_m, frames, facts[clip.video]))
    return {name: np.array([found[name] for found in right], np.float64) for name in right[0]}
