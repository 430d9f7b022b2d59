"""Figures of a run's test clips, a row for each: errors, and which object and place the hand goes to.

    clip_id, video, group, unseen
    <method>_ade_m, _fde_m              the first window; metres
    <method>_object, <method>_place     1 where the hand is nearest to the right one of three, else 0
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

from thinkjepa.cache import ClipRow
from thinkjepa.pipeline.sample.episodes import PLACES
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

HORIZONS = (4, 8, 16, 32)
"""Latent steps."""

FINGERTIPS = ("rightThumbTip", "rightIndexFingerTip", "rightMiddleFingerTip")
"""Their middle is where the hand holds things."""

FILE = "measured.parquet"


def measure(run_dir: Path, *, cache_dir: Path, videos: Path) -> Path:
    """Write the figures of a run's test clips to `run_dir` and return the file."""
    run = TrainedRun.open(run_dir)
    window_steps = run.shape.grid.future_steps
    features = run.features(cache_dir, windows=-(-max(HORIZONS) // window_steps))
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
        columns["unseen"] = [not facts[clip.video]["seen_pair"] for clip in part]
        times_s = horizons_s(part, features)
        for steps in HORIZONS:
            scores = score_columns(chosen, batch, joints=joints, steps=steps)
            for method in METHODS:
                columns[f"{method}_rollout_ade_{steps}_m"] = scores[f"{method}_ade_m"].numpy()
                if steps == max(HORIZONS):
                    curve = scores[f"{method}_ade_m_by_step"].numpy()
                    columns[f"{method}_slope_m_per_s"] = slopes_per_s(curve, times_s[:, :steps])
        scores = score_columns(chosen, batch, joints=joints, steps=window_steps)
        for method in METHODS:
            columns |= {f"{method}_{name}": scores[f"{method}_{name}"].numpy() for name in ("ade_m", "fde_m")}
            found = chosen[method].joints_m
            assert found is not None, "every method here predicts joints"
            columns |= {
                f"{method}_{name}": values
                for name, values in choices(found.double().numpy(), joints, part, features, facts).items()
            }
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), run_dir / FILE)
    return run_dir / FILE


def choices(
    joints_m: Floats,
    joints: Sequence[str],
    clips: Sequence[ClipRow],
    features: Features,
    facts: Mapping[str, Mapping[str, Any]],
) -> dict[str, Floats]:
    """1 where predicted joints `(clip, step, frame, joint, 3)` go to the right object, and place; else 0.

    That is the object nearest to the fingertips when the hand takes it, and the pad nearest when it lets go.
    """
    assert features.supervision is not None, "a run of joints has labels"
    tips = [joints.index(name) for name in FINGERTIPS]
    grip_m = joints_m.reshape(len(clips), -1, *joints_m.shape[3:])[:, :, tips].mean(axis=2)
    right = {"object": np.zeros(len(clips)), "place": np.zeros(len(clips))}
    for row, clip in enumerate(clips):
        fact = facts[clip.video]
        poses = features.supervision.labels_of(clip.clip_id).camera_poses
        assert poses is not None, "the sample's labels have the camera"
        world_m = to_world(grip_m[row].astype(np.float32), poses[clip.observed_frames[-1]])
        frames = np.concatenate(clip.future_frames[: features.windows])
        moments = {
            "object": (fact["grasp_frame"], fact["objects_m"], 0),
            "place": (fact["release_frame"] - 1, fact["places_m"], PLACES.index(fact["place"])),
        }
        for name, (frame, spots_m, answer) in moments.items():
            at = world_m[np.abs(frames - frame).argmin()]
            right[name][row] = nearest(at, np.array(spots_m)) == answer
    return right


def nearest(position_m: Floats, spots_m: Floats) -> int:
    """The number of the nearest of spots `(spot, 3)` over the table: height does not count."""
    return int(np.linalg.norm((spots_m - position_m)[:, [0, 2]], axis=1).argmin())
