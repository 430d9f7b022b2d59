"""Joints of a predicted video: where they start, the prediction, and the truth where it is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thinkjepa.cache import FeatureCache, VideoLabels
from thinkjepa.stages.data.labels.readers import find_labels
from thinkjepa.stages.data.labels.storing import read_fitting
from thinkjepa.stages.data.trajectories import Poses, Positions, clip_trajectory, reference_frame
from thinkjepa.stages.data.videos import SourceVideo
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.trained_run import TrainedRun
from thinkjepa.stages.predict.splits import ChosenFrames
from thinkjepa.stages.predict.watched import Watched
from thinkjepa.stages.train.features import last_seen


@dataclass(frozen=True, slots=True)
class PredictedHands:
    """Joints predicted for a video, with the true ones where its labels have them."""

    joints: tuple[str, ...]
    positions_m: Positions
    """`(future frame, joint, 3)`, in the camera frame of the last observed frame or in `reference_frame`."""
    reference_frame: str
    labels: VideoLabels | None
    true_m: Positions | None
    """As `positions_m`, as far as the labels reach; None without labels."""
    true_confidence: Positions | None
    camera_pose: Poses | None
    """Of the last observed frame, camera to the labels' world; None where unknown."""

    @property
    def distance_m(self) -> float | None:
        """Mean distance of predicted and true joints, over what is labelled."""
        if self.true_m is None or self.true_confidence is None or not self.true_confidence.any():
            return None
        distances = np.linalg.norm(self.positions_m[: len(self.true_m)] - self.true_m, axis=-1)
        return float(distances[self.true_confidence > 0].mean())

    def to_json(self) -> dict[str, Any]:
        """All but the labels; positions in metres."""
        camera = None if self.camera_pose is None else self.camera_pose.tolist()
        return {
            "joints": list(self.joints),
            "reference_frame": self.reference_frame,
            "positions_m": _rounded(self.positions_m),
            "camera_pose": camera,
            "true_positions_m": None if self.true_m is None else _rounded(self.true_m),
            "true_confidence": None if self.true_confidence is None else self.true_confidence.tolist(),
            "mean_distance_m": self.distance_m,
        }


@dataclass(frozen=True, slots=True)
class LabelledClip:
    """The joints of a run with a head, in a video before a split."""

    run: TrainedRun
    joints: tuple[str, ...]
    labels: VideoLabels | None
    frames: ChosenFrames

    @classmethod
    def find(cls, run: TrainedRun, clip: Watched, cache: FeatureCache) -> LabelledClip | None:
        """None for a run without a head. Raises LabelError where the video's label file is broken."""
        if run.shape.head is None:
            return None
        labels = _labels(cache, clip.source, num_frames=len(clip.info.times_s))
        return cls(run, run.shape.head.joints, labels, clip.frames)

    def last_pose(self) -> Tensor:
        """Where each joint was last seen, `(1, joint, 3)`; zeros where the model does not ask.

        Raises StageError where it asks and the labels do not tell.
        """
        assert self.run.shape.head is not None
        if self.run.shape.head.anchor != "last_pose":
            return torch.zeros(1, len(self.joints), 3)
        if self.labels is None or self.labels.num_frames <= self.frames.observed[-1]:
            raise StageError(
                "the run predicts displacements from the last observed pose (anchor last_pose), and the "
                "run's cache has no labels of this video up to the split, nor is there a label file beside it"
            )
        observed = self.frames.observed
        seen = clip_trajectory(self.labels, self.joints, observed_frames=observed, future_frames=[[]])
        pose, known = last_seen(seen)
        if not known.any():
            raise StageError("none of the run's joints was seen before the split, which it starts from")
        return torch.from_numpy(pose)[None]

    def predicted(self, joints_m: Tensor) -> PredictedHands:
        """The prediction of a batch of one, `(1, step, frame, joint, 3)`, next to what the labels tell."""
        labels = self.labels
        true_m, true_confidence = self._truth()
        stored = "/".join(self.run.record["reference_frames"])
        return PredictedHands(
            joints=self.joints,
            positions_m=joints_m[0].flatten(0, 1).numpy(),
            reference_frame=reference_frame(labels) if labels else stored,
            labels=labels,
            true_m=true_m,
            true_confidence=true_confidence,
            camera_pose=self._camera_pose(),
        )

    def _truth(self) -> tuple[Positions, Positions] | tuple[None, None]:
        """True positions `(frame, joint, 3)` and confidences of the future frames that the labels reach."""
        labels, observed = self.labels, self.frames.observed
        future = [] if labels is None else [item for item in self.frames.future if item < labels.num_frames]
        if labels is None or not future or observed[-1] >= labels.num_frames:
            return None, None
        found = clip_trajectory(labels, self.joints, observed_frames=observed, future_frames=[future])
        return found.future_m[0], found.future_confidence[0]

    def _camera_pose(self) -> Poses | None:
        last = self.frames.observed[-1]
        if self.labels is None or self.labels.camera_poses is None or last >= self.labels.num_frames:
            return None
        pose: Poses = self.labels.camera_poses[last]
        return pose


def _labels(cache: FeatureCache, source: SourceVideo, *, num_frames: int) -> VideoLabels | None:
    """The cache's labels of the video, else those of the file beside it, None where there are none.

    Raises LabelError where the file is broken, or is not of a video with so many frames.
    """
    if cache.labels.label_digest(source.digest):  # none where a file was broken when it was last looked at
        return cache.labels.find(source.digest)
    found = find_labels(source.path, source.path.parent)
    if found is None:
        return None
    read = read_fitting(found, num_frames)
    return read.of_video(source.name, video_digest=source.digest, label_digest=found.digest())


def _rounded(positions_m: Positions) -> list[Any]:
    """To a hundredth of a millimetre."""
    values: list[Any] = np.round(positions_m.astype(np.float64), 5).tolist()
    return values
