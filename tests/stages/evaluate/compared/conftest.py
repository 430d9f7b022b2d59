"""Evaluations of made-up scores, written and read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from thinkjepa.stages.evaluate.compared.groups import EvaluatedRun
from thinkjepa.stages.evaluate.table import (
    EVALUATION_SCHEMA,
    ClipTable,
    ClipTableWriter,
    JointCurves,
    lists,
    numbers,
)

SETS = {"encoder": {"name": "encoder-1"}, "thinker": None}
DIVISION = {"rule": {"group_by": "auto", "split_seed": 0}, "grouping": "video"}


@pytest.fixture
def add_run(tmp_path: Path) -> Callable[..., EvaluatedRun]:
    """A function that makes a run of a variant and seed with these ADE (m) on clips of one video each.

    Each clip is a group of its own unless `groups` names them. Histories beyond the observed window are
    `beyond_s`, repeated over the clips.
    At the first latent step they are half of that, at the last one `last_step` times.
    """

    def add(
        variant: str,
        seed: int,
        ade_m: Sequence[float],
        *,
        clips: Sequence[str] | None = None,
        constant_pose_m: float = 0.5,
        counted: int = 10,
        joints: Sequence[str] = ("rightHand",),
        division: dict[str, Any] = DIVISION,
        horizon_s: Sequence[float] = (0.1, 0.3),
        last_step: float = 1.5,
        last_frame_s: float = 0.35,
        fde_m: Sequence[float] | None = None,
        task_seen: Sequence[float] = (1.0,),
        feature_sets: dict[str, Any] = SETS,
        groups: Sequence[str] | None = None,
        beyond_s: Sequence[float] = (0.0,),
        by_joint: JointCurves | None = None,
        **settings: Any,
    ) -> EvaluatedRun:
        name = "-".join([variant, str(seed), *map(str, settings.values())])
        ids = list(clips or [f"{number:016d}@8" for number in range(len(ade_m))])
        scores = np.array(ade_m, dtype=np.float64)
        record = {
            **_record(variant, seed, settings),
            "feature_sets": feature_sets,
            "division": division,
            "joints": list(joints),
            "keypoints": list(joints),
        }
        columns = {
            "clip_id": pa.array(ids),
            "video_digest": pa.array([clip_id[:16] for clip_id in ids]),
            "group": pa.array(list(groups or ids)),
            "beyond_window_s": numbers(np.resize(beyond_s, len(ids))),
            "task_seen": numbers(np.resize(task_seen, len(ids))),
            "horizon_s": lists(np.full((len(ids), 2), horizon_s)),
            "last_frame_s": numbers(np.full(len(ids), last_frame_s)),
            "labelled_joint_frames": numbers(np.full(len(ids), 20)),
            "counted_joint_frames": numbers(np.full(len(ids), counted)),
            **_scores(scores, constant_pose_m=constant_pose_m, last_step=last_step),
        }
        if fde_m is not None:
            columns["model_fde_m"] = numbers(np.array(fde_m))
        path = tmp_path / f"{name}.parquet"
        with ClipTableWriter(path, record) as table:
            table.append(columns)
            table.add_by_joint(by_joint or {})
        return EvaluatedRun(name, ClipTable.read(path))

    return add


def _record(variant: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """A record of a run of these settings, without sets, division and joints."""
    return {
        "schema": EVALUATION_SCHEMA,
        "split": "test",
        "variant": variant,
        "seed": seed,
        "settings": {"variant": variant, "seed": seed, "device": "cpu", "epochs": 3, **settings},
        "reference_frames": ["camera"],
    }


def _scores(
    ade_m: npt.NDArray[np.float64], *, constant_pose_m: float, last_step: float
) -> dict[str, pa.Array]:
    """The columns of a model and of constant pose, over two latent steps."""
    num_clips = len(ade_m)
    return {
        "constant_pose_ade_m": numbers(np.full(num_clips, constant_pose_m)),
        "constant_pose_ade_m_by_step": lists(np.full((num_clips, 2), constant_pose_m)),
        "model_ade_m": numbers(ade_m),
        "model_keypoint_m": numbers(ade_m / 2),
        "model_ade_m_by_step": lists(np.stack((ade_m / 2, ade_m * last_step), axis=1)),
        "model_l2": numbers(ade_m * 100),
        "model_l2_by_step": lists(np.stack((ade_m, ade_m), axis=1)),
    }
