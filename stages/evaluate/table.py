"""RUN/eval-<split>.parquet: a row per clip with its scores and predicted joints.

The schema's metadata say what was evaluated (settings, split, checkpoint, methods), the file's have figures
of all clips together. Columns:

    clip_id, video, video_digest, split_frame, split_time_s
    group                   of the video, by the run's partition: its clips resemble each other
    beyond_window_s         seconds of history before the observed window, 0 below one of its steps
    history_s               seconds from the thinker's first frame to the last observed one
    task_seen               1 for a task of the run's training clips, 0 for another, null where unknown
    horizon_s               seconds from the last observed frame to the middle of each latent step
    last_frame_s            seconds from the last observed frame to the last future frame, where FDE is taken
    <method>_<metric>       one score a clip, null where it has none
    <method>_<metric>_by_step
and for runs with joints
    labelled_joint_frames, counted_joint_frames
    future_frames, future_times_s   of the video: seconds from its beginning
    predicted_joints_m      the model's, flattened from (frame, joint, 3), in the camera frame of the last
                            observed frame (in the labels' world where no camera pose is known)
    camera_pose             that camera to world, flattened from (4, 4), null where unknown
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from thinkjepa.cache.disk.files import explained_os_errors, name_file, staging_name
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.baselines import METHODS
from thinkjepa.stages.evaluate.metrics import METRICS, MetricKind
from thinkjepa.stages.evaluate.scores import Score, Scores
from thinkjepa.stages.intervals import Clusters, Floats
from thinkjepa.stages.json_files import json_bytes

EVALUATION_SCHEMA = "thinkjepa.eval.v4"
RECORD_KEY = b"thinkjepa.eval"
OVER_CLIPS_KEY = b"thinkjepa.eval.over_clips"
BY_JOINT_KEY = b"thinkjepa.eval.by_joint"

PREDICTIONS = ("predicted_joints_m", "camera_pose", "future_frames", "future_times_s")
"""Columns that no summary needs."""

CLIP_COLUMNS = (
    "clip_id",
    "video_digest",
    "group",
    "beyond_window_s",
    "task_seen",
    "horizon_s",
    "last_frame_s",
    "labelled_joint_frames",
    "counted_joint_frames",
)
"""Columns besides the scores that summaries need."""

JointCurves = Mapping[str, Mapping[str, Sequence[float | None]]]
"""Mean distance (m) at each latent step by method and joint, None where no clip has one."""

CLIPS_OF_A_ROW_GROUP = 256  # 5 MB of predictions at 32 frames of 52 joints


def table_path(run_dir: Path, split_name: str) -> Path:
    return run_dir / f"eval-{split_name}.parquet"


class ClipTableWriter:
    """Writes a table part by part; a context manager. The file appears when all of it is there."""

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        self._path = path
        self._staging = staging_name(path)
        self._metadata = {RECORD_KEY: json_bytes(record)}
        self._over_clips: Mapping[str, Mapping[str, float]] = {}
        self._by_joint: JointCurves = {}
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []

    def __enter__(self) -> Self:
        return self

    def append(self, columns: Mapping[str, pa.Array]) -> None:
        """Add rows. Every call gives the same columns, of the same types."""
        self._waiting.append(pa.table(dict(columns)).replace_schema_metadata(self._metadata))
        if sum(map(len, self._waiting)) >= CLIPS_OF_A_ROW_GROUP:
            self._flush()

    def add_over_clips(self, figures: Mapping[str, Mapping[str, float]]) -> None:
        """Record figures of all clips together, by method and metric."""
        self._over_clips = figures

    def add_by_joint(self, curves: JointCurves) -> None:
        """Record the errors of single joints."""
        self._by_joint = curves

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
                    self._writer.add_key_value_metadata(
                        {
                            OVER_CLIPS_KEY: json_bytes(self._over_clips),
                            BY_JOINT_KEY: json_bytes(self._by_joint),
                        }
                    )
                    self._writer.close()
                if kind is None:
                    name_file(self._staging, self._path)
        finally:
            self._staging.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class ClipTable:
    """One evaluation, read back without its predictions."""

    record: Mapping[str, Any]
    """What was evaluated, see `evaluation.describe`."""
    rows: pa.Table
    """`CLIP_COLUMNS`, as far as there are."""
    scores: Scores
    over_clips: Mapping[str, Mapping[str, float]]
    """Figures of all its clips together, by method and metric; empty where only some clips are left."""
    by_joint: JointCurves = field(default_factory=dict)
    """Likewise. Empty in tables of earlier versions."""

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
        described = rows.select([name for name in CLIP_COLUMNS if name in rows.column_names])
        over_clips, by_joint = (
            json.loads(file.metadata.metadata.get(key, b"{}")) for key in (OVER_CLIPS_KEY, BY_JOINT_KEY)
        )
        return cls(record, described, _read_scores(rows), over_clips, by_joint)

    @property
    def clip_ids(self) -> list[str]:
        ids: list[str] = self.rows["clip_id"].to_pylist()
        return ids

    @property
    def video_digests(self) -> list[str]:
        digests: list[str] = self.rows["video_digest"].to_pylist()
        return digests

    def clusters(self) -> Clusters:
        """The groups and videos of the clips."""
        return Clusters(groups=self.rows["group"].to_pylist(), videos=self.video_digests)

    def only(self, clip_ids: Sequence[str]) -> "ClipTable":
        """The rows of these clips, all of which it has, in this order."""
        index_of = {clip_id: index for index, clip_id in enumerate(self.clip_ids)}
        indices = np.array([index_of[clip_id] for clip_id in clip_ids], dtype=np.int64)
        scores = {key: values[indices] for key, values in self.scores.items()}
        rows, is_whole = self.rows.take(pa.array(indices)), len(indices) == len(self.clip_ids)
        return ClipTable(
            self.record, rows, scores, self.over_clips if is_whole else {}, self.by_joint if is_whole else {}
        )

    def without(self, kind: MetricKind) -> "ClipTable":
        """The table without metrics of this kind."""
        kept = {key: values for key, values in self.scores.items() if METRICS[key.metric].kind != kind}
        over_clips = {
            method: {name: value for name, value in figures.items() if METRICS[name].kind != kind}
            for method, figures in self.over_clips.items()
        }
        return replace(self, scores=kept, over_clips=over_clips)

    def numbers(self, column: str) -> Floats:
        """A column of numbers, `(clip,)`."""
        return _read_numbers(self.rows[column])

    def lists(self, column: str) -> Floats:
        """A column of lists, `(clip, step)`."""
        return _read_lists(self.rows[column])


@dataclass(frozen=True, slots=True)
class StoredPrediction:
    """The joints that a run predicted for one clip."""

    joints_m: npt.NDArray[np.float32]
    """`(future frame, joint, 3)`"""
    camera_pose: Floats | None
    """Camera to world `(4, 4)` of the last observed frame; None where unknown."""


def read_predictions(path: Path, clip_ids: Sequence[str]) -> dict[str, StoredPrediction]:
    """The predicted joints of some clips, by clip id, of a table that `ClipTable.read` accepts.

    Empty for a run without joints.
    """
    file = pq.ParquetFile(path)
    if "predicted_joints_m" not in file.schema_arrow.names:
        return {}
    rows = file.read(["clip_id", "predicted_joints_m", "camera_pose", "future_frames"])
    chosen = rows.filter(pc.is_in(rows["clip_id"], pa.array(clip_ids, pa.string())))
    return {
        row["clip_id"]: StoredPrediction(
            np.array(row["predicted_joints_m"], np.float32).reshape(len(row["future_frames"]), -1, 3),
            None if row["camera_pose"] is None else np.array(row["camera_pose"]).reshape(4, 4),
        )
        for row in chosen.to_pylist()
    }


def _read_scores(rows: pa.Table) -> Scores:
    scores: dict[Score, Floats] = {}
    for method, metric in product(METHODS, METRICS):
        column = f"{method}_{metric}"
        if column in rows.column_names:
            scores[Score(method, metric)] = _read_numbers(rows[column])
        if f"{column}_by_step" in rows.column_names:
            curves = _read_lists(rows[f"{column}_by_step"])
            scores |= {Score(method, metric, step): at for step, at in enumerate(curves.T, start=1)}
    return scores


def _read_numbers(column: pa.ChunkedArray) -> Floats:
    values: Floats = column.to_numpy().astype(np.float64)
    return values


def _read_lists(column: pa.ChunkedArray) -> Floats:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    values: Floats = flat.astype(np.float64).reshape(len(column), -1)
    return values


def numbers(values: npt.NDArray[Any]) -> pa.Array:
    """A column from `(clip,)`; NaN becomes null."""
    return pa.array(values, from_pandas=True)


def lists(values: npt.NDArray[Any]) -> pa.Array:
    """A column of lists from `(clip, ...)`, each clip's values flattened; NaN becomes null."""
    size = int(np.prod(values.shape[1:]))
    offsets = np.arange(len(values) + 1, dtype=np.int32) * size
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1), from_pandas=True))
