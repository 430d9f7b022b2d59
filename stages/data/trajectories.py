"""Hand trajectories of clips: labels of a video, cut at a clip's frames and put into one frame of reference.

Shape letters: F frames, J joints, W future windows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from thinkjepa.cache import CacheError, ClipSelection, LabelTable, ReferenceFrame, VideoLabels
from thinkjepa.stages.data.joints import choose_joints, describe_joints, is_joint_set
from thinkjepa.stages.errors import StageError

Positions = npt.NDArray[np.float32]
Poses = npt.NDArray[np.float64]

VIDEOS_AT_HAND = 256
"""Labels of videos that are kept parsed; their numbers stay in the mapped file."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Joints around one split, metres, all in one frame of reference.

    That is the camera frame of the last observed frame wherever the labels allow it: nothing in it depends on
    the camera's later movement. `camera_pose` is that camera's, in the labels' world, None where unknown.
    """

    observed_m: Positions
    """`(observed frame, joint, 3)`"""
    observed_confidence: Positions
    """`(observed frame, joint)`, 0 where nothing is known."""
    future_m: Positions
    """`(window, future frame, joint, 3)`"""
    future_confidence: Positions
    """`(window, future frame, joint)`"""
    camera_pose: Poses | None


def clip_trajectory(
    labels: VideoLabels,
    joints: Sequence[str],
    *,
    observed_frames: npt.ArrayLike,
    future_frames: npt.ArrayLike,
    min_confidence: float = 0.0,
) -> Trajectory:
    """Cut the joints at a clip's frames: indices into the video, `(frame,)` and `(window, frame)`.

    Joints that the labels lack, or hold with less than `min_confidence`, have confidence 0: unknown.
    """
    observed, future = (np.asarray(frames, dtype=np.int64) for frames in (observed_frames, future_frames))
    camera_pose = None if labels.camera_poses is None else labels.camera_poses[observed[-1]]
    observed_m, observed_confidence = _cut(labels, joints, observed, min_confidence)
    future_m, future_confidence = _cut(labels, joints, future.reshape(-1), min_confidence)
    return Trajectory(
        observed_m=_in_camera(observed_m, camera_pose),
        observed_confidence=observed_confidence,
        future_m=_in_camera(future_m, camera_pose).reshape(*future.shape, len(joints), 3),
        future_confidence=future_confidence.reshape(*future.shape, len(joints)),
        camera_pose=camera_pose,
    )


def reference_frame(labels: VideoLabels) -> ReferenceFrame:
    """The frame of reference of a video's trajectories: the camera's, unless nothing tells where it was."""
    return "world" if labels.reference_frame == "world" and labels.camera_poses is None else "camera"


def to_camera(positions_m: Positions, camera_pose: Poses) -> Positions:
    """World positions `(..., 3)` in the frame of a camera `(4, 4)` (camera to world), computed in float64."""
    rotation, origin = camera_pose[:3, :3], camera_pose[:3, 3]
    turned: Positions = ((positions_m.astype(np.float64) - origin) @ rotation).astype(np.float32)
    return turned


def to_world(positions_m: Positions, camera_pose: Poses) -> Positions:
    """The inverse of `to_camera`."""
    rotation, origin = camera_pose[:3, :3], camera_pose[:3, 3]
    turned: Positions = (positions_m.astype(np.float64) @ rotation.T + origin).astype(np.float32)
    return turned


def project(positions_m: Positions, intrinsics: Poses) -> npt.NDArray[np.float64]:
    """Pixels `(..., 2)` (right, down) of positions `(..., 3)` in a camera's frame; NaN behind the camera."""
    points = positions_m.astype(np.float64) @ intrinsics.T
    depth = points[..., 2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels: npt.NDArray[np.float64] = np.where(depth > 0, points[..., :2] / depth, np.nan)
    return pixels


class Supervision:
    """The trajectories of the clips that have them: which joints, in which frame of reference.

    Holds frame numbers only; joints are read from the mapped labels, clip by clip.
    """

    def __init__(
        self, table: LabelTable, clips: ClipSelection, *, joints: str, min_confidence: float = 0.0
    ) -> None:
        """Raises StageError where no clip has labels, or none of the joints asked for."""
        self._table, self._wanted, self._min_confidence = table, joints, min_confidence
        self.never_known: tuple[str, ...] = ()
        """Chosen joints that `knowing` left out."""
        self.without: dict[str, str] = {}
        """Why clips have no trajectory, by clip id."""
        self._clips = self._labelled(clips)
        if not self._clips:
            why = next(iter(self.without.values()), "there are no clips")
            raise StageError(f"no clip has hand labels ({why}): thinkjepa-data import stores them in a cache")
        videos = dict.fromkeys(clip.video_digest for clip in self._clips.values())
        self.joints = choose_joints(joints, [self._of(digest).joint_names for digest in videos])
        self.reference_frames = tuple(sorted({reference_frame(self._of(digest)) for digest in videos}))
        """Of the trajectories: `camera` alone where all labels tell where the camera was."""
        self._leave_out_videos_without(self.joints)

    def knowing(self, clip_ids: Collection[str]) -> Supervision:
        """The same clips, with the joints that are known in the future of any of `clip_ids`.

        A joint that is never known has nothing to be trained on: it is no output of a head, and no joint of a
        count or a picture. Raises StageError where one of these was asked for by name, or none is left.
        """
        known = self._known(clip_ids)
        if not known:
            lower = "lower --min-confidence, or " if self._min_confidence else ""
            raise StageError(
                f"every joint has confidence {self._unsure} in the future of all {len(clip_ids)} training "
                f"clips: no hand can be learned; {lower}--task latent trains without"
            )
        unknown = [name for name in self.joints if name not in known]
        if unknown and not is_joint_set(self._wanted):
            raise StageError(
                f"--joints: {unknown[0]!r} is labelled and never known: its confidence is {self._unsure} in "
                f"the future of all {len(clip_ids)} training clips; known are {describe_joints(known)}"
            )
        chosen = copy(self)
        chosen.joints = choose_joints(self._wanted, [known])
        chosen.never_known = tuple(name for name in self.joints if name not in known)
        return chosen

    def _known(self, clip_ids: Collection[str]) -> tuple[str, ...]:
        """Joints that are known in a future frame of any clip, in the labels' order."""
        labelled = dict.fromkeys(name for clip_id in clip_ids for name in self.labels_of(clip_id).joint_names)
        known: set[str] = set()
        for clip_id in clip_ids:
            if len(known) == len(labelled):
                break
            labels, frames = self.labels_of(clip_id), self._clips[clip_id].future_frames
            confidences = _sure(labels.confidences[frames.reshape(-1)], self._min_confidence)
            sure = np.flatnonzero(np.any(confidences > 0, axis=0))
            known.update(labels.joint_names[place] for place in sure)
        return tuple(name for name in labelled if name in known)

    @property
    def _unsure(self) -> str:
        """Confidences of unknown joints, in words."""
        return f"below {self._min_confidence:g}" if self._min_confidence else "0"

    @property
    def clip_ids(self) -> frozenset[str]:
        """The clips that have a trajectory."""
        return frozenset(self._clips)

    def trajectory(self, clip_id: str) -> Trajectory:
        """Raises CacheError where the stored labels are damaged."""
        clip = self._clips[clip_id]
        return clip_trajectory(
            self._of(clip.video_digest),
            self.joints,
            observed_frames=clip.observed_frames,
            future_frames=clip.future_frames,
            min_confidence=self._min_confidence,
        )

    def observed_times_s(self, clip_id: str) -> Poses:
        """Presentation times of a clip's observed frames `(observed frame,)`, seconds."""
        return self._clips[clip_id].observed_times_s

    def labels_of(self, clip_id: str) -> VideoLabels:
        """All labels of a clip's video."""
        return self._of(self._clips[clip_id].video_digest)

    def _of(self, video_digest: str) -> VideoLabels:
        return _find(self._table, video_digest)

    def _labelled(self, clips: ClipSelection) -> dict[str, _ClipFrames]:
        columns = ("video", "video_digest", "observed_frames", "observed_times_s", "future_frames")
        rows = zip(clips.clip_ids.to_pylist(), *(clips.values(name) for name in columns), strict=True)
        labelled: dict[str, _ClipFrames] = {}
        for clip_id, video, digest, observed, times_s, future in rows:
            frames = _ClipFrames(
                digest, np.array(observed, np.int32), np.array(times_s), np.array(future, np.int32)
            )
            if reason := self._problem(frames, video):
                self.without[clip_id] = reason
            else:
                labelled[clip_id] = frames
        return labelled

    def _leave_out_videos_without(self, joints: Sequence[str]) -> None:
        for clip_id, frames in list(self._clips.items()):
            labels = self._of(frames.video_digest)
            if not set(joints) & set(labels.joint_names):
                self.without[clip_id] = f"video {labels.video!r} has labels for none of the chosen joints"
                del self._clips[clip_id]

    def _problem(self, frames: _ClipFrames, video: str) -> str:
        """Reason why a clip cannot be supervised, or an empty string."""
        if self._table.label_digest(frames.video_digest) is None:
            return f"video {video!r} has no labels"
        labels, last = self._of(frames.video_digest), int(frames.future_frames.max())
        if last >= labels.num_frames:
            return f"video {video!r} has labels for {labels.num_frames} frames, the clip needs frame {last}"
        return ""


@dataclass(frozen=True, slots=True)
class _ClipFrames:
    video_digest: str
    observed_frames: npt.NDArray[np.int32]
    observed_times_s: npt.NDArray[np.float64]
    future_frames: npt.NDArray[np.int32]


@lru_cache(maxsize=VIDEOS_AT_HAND)
def _find(table: LabelTable, video_digest: str) -> VideoLabels:
    labels = table.find(video_digest)
    if labels is None:
        raise CacheError(f"video {video_digest[:16]} has no labels any more: run thinkjepa-data import")
    return labels


def _cut(
    labels: VideoLabels, joints: Sequence[str], frames: npt.NDArray[Any], min_confidence: float
) -> tuple[Positions, Positions]:
    """Positions `(frame, joint, 3)` and confidences `(frame, joint)`, zeros for joints not held.

    Confidences below the least one are 0.
    """
    positions_m = np.zeros((len(frames), len(joints), 3), dtype=np.float32)
    confidences = np.zeros((len(frames), len(joints)), dtype=np.float32)
    places = {name: place for place, name in enumerate(labels.joint_names)}
    held = [place for place, name in enumerate(joints) if name in places]
    chosen = [places[joints[place]] for place in held]
    positions_m[:, held] = labels.positions_m[frames][:, chosen]
    confidences[:, held] = labels.confidences[frames][:, chosen]
    return positions_m, _sure(confidences, min_confidence)


def _sure(confidences: Positions, min_confidence: float) -> Positions:
    """Confidences with 0 in place of those below the least one."""
    return np.where(confidences < min_confidence, np.float32(0), confidences)


def _in_camera(positions_m: Positions, camera_pose: Poses | None) -> Positions:
    return positions_m if camera_pose is None else to_camera(positions_m, camera_pose)
