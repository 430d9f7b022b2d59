"""RUN/eval-<split>.parquet: a row per clip with all scores and the model's joints, and what was evaluated.

What was evaluated (settings, split, checkpoint, methods) stands in the schema's metadata, so that the file
tells its own story. Columns:

    clip_id, video, video_digest, split_frame, split_time_s
    horizon_s               seconds from the last observed frame to the middle of each latent step
    last_frame_s            seconds from the last observed frame to the last future frame, where FDE is taken
    <method>_<metric>       one score a clip; null where it has none
    <method>_<metric>_by_step
and for runs with joints
    labelled_joint_frames, counted_joint_frames
    future_frames, future_times_s   of the video: seconds from its beginning
    predicted_joints_m      the model's, flattened from (frame, joint, 3), in the camera frame of the last
                            observed frame (in the labels' world where no camera pose is known)
    camera_pose             that camera to world, flattened from (4, 4); null where unknown
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from thinkjepa.cache.disk.files import explained_os_errors
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.baselines import FORECASTS
from thinkjepa.stages.evaluate.bootstrap import LEVEL, NUM_DRAWS, Floats, VideoBootstrap
from thinkjepa.stages.evaluate.metrics import (
    DECIMALS,
    LATENT_METRICS,
    METRICS,
    POSE_BASELINES,
    TRAJECTORY_METRICS,
    horizon_summary,
    time_summary,
)
from thinkjepa.stages.json_files import json_bytes

EVALUATION_SCHEMA = "thinkjepa.eval.v3"

RECORD_KEY = b"thinkjepa.eval"

PREDICTIONS = ("predicted_joints_m", "camera_pose", "future_frames", "future_times_s")
"""Columns that no summary needs."""

CLIPS_OF_A_ROW_GROUP = 256  # 5 MB of predictions at 32 frames of 52 joints


def table_path(run_dir: Path, side: str) -> Path:
    return run_dir / f"eval-{side}.parquet"


class ClipTableWriter:
    """Writes a table part by part; a context manager. The file appears when all of it is there."""

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        self._path = path
        self._staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._metadata = {RECORD_KEY: json_bytes(record)}
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []

    def __enter__(self) -> Self:
        return self

    def append(self, columns: Mapping[str, pa.Array]) -> None:
        """Add rows; every part has the same columns, of the same types."""
        self._waiting.append(pa.table(dict(columns)).replace_schema_metadata(self._metadata))
        if sum(map(len, self._waiting)) >= CLIPS_OF_A_ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        self._waiting = []
        with explained_os_errors("write", self._path):
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._staging, table.schema, compression="zstd")
            self._writer.write_table(table)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
            with explained_os_errors("write", self._path):
                if self._writer is not None:
                    self._writer.close()
                if kind is None:
                    self._staging.replace(self._path)
        finally:
            self._staging.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class ClipTable:
    """The scores of one evaluation, without the predictions."""

    record: Mapping[str, Any]
    """What was evaluated, see `evaluation.describe`."""
    rows: pa.Table

    @classmethod
    def read(cls, path: Path) -> "ClipTable":
        """Raises StageError where there is none, or one of another version."""
        if not path.is_file():
            raise StageError(f"{str(path)!r} does not exist: run thinkjepa-eval on that run first")
        try:
            file = pq.ParquetFile(path)
            rows = file.read([name for name in file.schema_arrow.names if name not in PREDICTIONS])
        except (pa.ArrowException, OSError) as error:
            raise StageError(f"{str(path)!r} cannot be read ({error}): run thinkjepa-eval again") from error
        record = json.loads((file.schema_arrow.metadata or {}).get(RECORD_KEY, b"{}"))
        if record.get("schema") != EVALUATION_SCHEMA:
            raise StageError(
                f"{str(path)!r} has schema {record.get('schema')!r}, this version reads "
                f"{EVALUATION_SCHEMA!r}: run thinkjepa-eval again"
            )
        return cls(record=record, rows=rows)

    @property
    def clip_ids(self) -> list[str]:
        ids: list[str] = self.rows["clip_id"].to_pylist()
        return ids

    @property
    def video_digests(self) -> list[str]:
        digests: list[str] = self.rows["video_digest"].to_pylist()
        return digests

    def only(self, clip_ids: Sequence[str]) -> "ClipTable":
        """The rows of these clips, all of which it has, in this order."""
        places = {clip_id: place for place, clip_id in enumerate(self.clip_ids)}
        rows = self.rows.take(pa.array([places[clip_id] for clip_id in clip_ids], pa.int64()))
        return ClipTable(record=self.record, rows=rows)

    def without(self, metrics: Sequence[str]) -> "ClipTable":
        """The table without these metrics of any method."""
        ends = tuple(f"_{metric}{kind}" for metric in metrics for kind in ("", "_by_step"))
        kept = [name for name in self.rows.column_names if not name.endswith(ends)]
        return ClipTable(record=self.record, rows=self.rows.select(kept))

    def has(self, method: str, metric: str) -> bool:
        return f"{method}_{metric}" in self.rows.column_names

    def scores(self, method: str, metric: str) -> Floats:
        """One score a clip, `(clip,)`; NaN where a clip has none."""
        return self.numbers(f"{method}_{metric}")

    def curves(self, method: str, metric: str) -> Floats:
        """Scores at each latent step, `(clip, step)`."""
        return self.lists(f"{method}_{metric}_by_step")

    def numbers(self, column: str) -> Floats:
        """A column of numbers, `(clip,)`."""
        values: Floats = self.rows[column].to_numpy().astype(np.float64)
        return values

    def lists(self, column: str) -> Floats:
        """A column of lists, `(clip, step)`."""
        flat = self.rows[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        values: Floats = flat.astype(np.float64).reshape(len(self.rows), -1)
        return values


def numbers(values: npt.NDArray[Any]) -> pa.Array:
    """A column from `(clip,)`; NaN becomes null."""
    return pa.array(values, from_pandas=True)


def lists(values: npt.NDArray[Any]) -> pa.Array:
    """A column of lists from `(clip, ...)`, each clip's values flattened; NaN becomes null."""
    size = int(np.prod(values.shape[1:]))
    offsets = np.arange(len(values) + 1, dtype=np.int32) * size
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1), from_pandas=True))


DESCRIBING = (
    "schema",
    "split",
    "variant",
    "seed",
    "checkpoint_sha256",
    "joints",
    "keypoints",
    "reference_frames",
)
"""What of an evaluation's record is repeated beside the figures; run.json has the rest."""

Figure = Mapping[str, float | None]
"""`mean`, `low`, `high`; None is what is not known."""


def summarise(table: ClipTable) -> dict[str, Any]:
    """The content of eval-<split>.json."""
    bootstrap = VideoBootstrap(table.video_digests)
    means: dict[str, dict[str, Any]] = {"latent": {}, "trajectory": {}}
    intervals: dict[str, dict[str, Any]] = {"latent": {}, "trajectory": {}}
    for kind, names in (("latent", LATENT_METRICS), ("trajectory", TRAJECTORY_METRICS)):
        for method, figures in _by_method(table, names, bootstrap).items():
            means[kind][method] = {name: figure["mean"] for name, figure in figures.items()}
            ends = {name: [figure["low"], figure["high"]] for name, figure in figures.items()}
            intervals[kind][method] = ends
    return {
        **{name: table.record[name] for name in DESCRIBING},
        "num_clips": len(table.clip_ids),
        "num_videos": bootstrap.num_videos,
        "joint_frames": joint_frames(table),
        **means,
        "intervals": intervals,
        "interval": interval_method(),
        "last_frame": time_summary(table.numbers("last_frame_s")),
        "horizon": _horizon(table),
    }


def headline(result: Mapping[str, Any]) -> dict[str, float]:
    """The few numbers of an evaluation that fit a line, from the content of eval-<split>.json.

    `ade_m`, `fde_m` and `acc_5cm` of the run, `baseline_m` (the smallest ADE of a method without training),
    `latent` and `persist` (the squared latent error of the run and of latent persistence). What was not
    measured is left out.
    """
    joints, latents = result["trajectory"], result["latent"]
    baselines = [joints[name]["ade_m"] for name in POSE_BASELINES if "ade_m" in joints.get(name, {})]
    found = {name: joints.get("model", {}).get(name) for name in ("ade_m", "fde_m", "acc_5cm")}
    found |= {
        "baseline_m": min(baselines, default=None),
        "latent": latents["model"]["l2"],
        "persist": latents["latent_persistence"]["l2"],
    }
    return {name: round(value, DECIMALS) for name, value in found.items() if value is not None}


def interval_method() -> dict[str, Any]:
    """How the intervals were made, for those who read the file."""
    return {"method": "percentile bootstrap over videos", "level": LEVEL, "draws": NUM_DRAWS}


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


def figures(scores: Mapping[str, Floats], bootstrap: VideoBootstrap) -> dict[str, Figure]:
    """Mean and interval of each of some scores `(clip,)`; those that no clip has are left out."""
    known = {name: values for name, values in scores.items() if not np.isnan(values).all()}
    if not known:
        return {}
    found = bootstrap.intervals(np.stack(list(known.values()), axis=1))
    ends = zip(found.mean, found.low, found.high, strict=True)
    return {
        name: {"mean": number(mean), "low": number(low), "high": number(high)}
        for name, (mean, low, high) in zip(known, ends, strict=True)
    }


def number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else float(value)


def _by_method(
    table: ClipTable, names: Sequence[str], bootstrap: VideoBootstrap
) -> dict[str, dict[str, Figure]]:
    found = {method: figures(_scores(table, method, names), bootstrap) for method in methods(table)}
    return {method: values for method, values in found.items() if values}


def methods(table: ClipTable) -> list[str]:
    """The methods that were evaluated."""
    return [method for method in FORECASTS if any(table.has(method, name) for name in METRICS)]


def _scores(table: ClipTable, method: str, names: Iterable[str]) -> dict[str, Floats]:
    return {name: table.scores(method, name) for name in names if table.has(method, name)}


def _horizon(table: ClipTable) -> list[dict[str, Any]]:
    """One record per latent step: its horizon in seconds, and each method's means at that step."""
    records: list[dict[str, Any]] = [dict(record) for record in horizon_summary(table.lists("horizon_s"))]
    for method in methods(table):
        curves = {
            name: table.curves(method, name)
            for name, metric in METRICS.items()
            if metric.by_step and table.has(method, name)
        }
        for step, record in enumerate(records):
            at_step = {name: _mean(curve[:, step]) for name, curve in curves.items()}
            record[method] = {name: value for name, value in at_step.items() if value is not None}
    return records


def _mean(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
