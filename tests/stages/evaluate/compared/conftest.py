"""Evaluations of made-up scores, written and read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from thinkjepa.stages.evaluate.compared.groups import EvaluatedRun
from thinkjepa.stages.evaluate.table import EVALUATION_SCHEMA, ClipTable, ClipTableWriter, lists, numbers

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
        **settings: Any,
    ) -> EvaluatedRun:
        name = "-".join([variant, str(seed), *map(str, settings.values())])
        ids = list(clips or [f"{number:016d}@8" for number in range(len(ade_m))])
        scores = np.array(ade_m, dtype=np.float64)
        record = {
            "schema": EVALUATION_SCHEMA,
            "split": "test",
            "variant": variant,
            "seed": seed,
            "settings": {"variant": variant, "seed": seed, "device": "cpu", "epochs": 3, **settings},
            "feature_sets": feature_sets,
            "division": division,
            "joints": list(joints),
            "keypoints": list(joints),
            "reference_frames": ["camera"],
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
            "constant_pose_ade_m": numbers(np.full(len(ids), constant_pose_m)),
            "constant_pose_ade_m_by_step": lists(np.full((len(ids), 2), constant_pose_m)),
            "model_ade_m": numbers(scores),
            "model_keypoint_m": numbers(scores / 2),
            "model_ade_m_by_step": lists(np.stack((scores / 2, scores * last_step), axis=1)),
            "model_l2": numbers(scores * 100),
            "model_l2_by_step": lists(np.stack((scores, scores), axis=1)),
        }
        if fde_m is not None:
            columns["model_fde_m"] = numbers(np.array(fde_m))
        path = tmp_path / f"{name}.parquet"
        with ClipTableWriter(path, record) as table:
            table.append(columns)
        return EvaluatedRun(name, ClipTable.read(path))

    return add
