"""Hand joints of a batch of clips: those observed before the split, and those to predict.

`ObservedPoses` is all that a prediction may know of the hands.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thinkjepa.stages.data.trajectories import Trajectory

INPUT_FRAMES = 8
"""Observed frames that predictions from poses read, at most. Measured on the sample's hands: a ridge on all
eight observed frames is 0 to 15 % better than one on the last pose and velocity alone."""


def input_frames(num_frames: int) -> list[int]:
    """Indices of the observed frames that are read: evenly spaced, first and last included."""
    return [int(index) for index in np.linspace(0, num_frames - 1, min(num_frames, INPUT_FRAMES)).round()]


@dataclass(frozen=True, slots=True)
class ObservedPoses:
    """Joints at the observed frames, float32, in the frame of reference of `stages.data.trajectories`."""

    positions_m: Tensor
    """`(batch, observed frame, joint, 3)`, zeros where nothing is known."""
    known: Tensor
    """`(batch, observed frame, joint)`: 1 where the position is known, else 0."""
    times_s: Tensor
    """`(batch, observed frame)`: seconds since the last observed frame, 0 or less."""

    @classmethod
    def unknown(cls, num_clips: int, *, num_frames: int, num_joints: int) -> "ObservedPoses":
        """Poses of which nothing is known."""
        known = torch.zeros(num_clips, num_frames, num_joints)
        return cls(torch.zeros(*known.shape, 3), known, torch.zeros(num_clips, num_frames))

    @property
    def last_pose_m(self) -> Tensor:
        """Each joint's last known position `(batch, joint, 3)`, zeros where there is none."""
        return _at(self.positions_m, _last_frame(self.known)) * self.last_known[..., None]

    @property
    def last_known(self) -> Tensor:
        """`(batch, joint)`: 1 where the joint is known at any observed frame, else 0."""
        return self.known.amax(dim=1)

    @property
    def velocity_m_s(self) -> Tensor:
        """Velocity of each joint between its last two known times `(batch, joint, 3)`, metres a second.

        Zeros where a joint is known at fewer than two times. A frame that was sampled twice is one time.
        """
        last_BJ = _last_frame(self.known)
        before_BJ = _last_frame(self._earlier)
        moved_BJ3 = _at(self.positions_m, last_BJ) - _at(self.positions_m, before_BJ)
        times_BFJ1 = self._clock[..., None]
        elapsed_BJ1 = _at(times_BFJ1, last_BJ) - _at(times_BFJ1, before_BJ)
        known_BJ1 = self.velocity_known[..., None]
        return moved_BJ3 * known_BJ1 / torch.where(known_BJ1 > 0, elapsed_BJ1, 1.0)

    @property
    def velocity_known(self) -> Tensor:
        """`(batch, joint)`: 1 where the joint is known at two times or more, else 0."""
        return self._earlier.amax(dim=1)

    @property
    def _earlier(self) -> Tensor:
        """`(batch, observed frame, joint)`: 1 where a joint is known before its last known time."""
        last_BJ = self._clock.masked_fill(self.known == 0, -torch.inf).amax(dim=1)
        return self.known * (self._clock < last_BJ[:, None])

    @property
    def _clock(self) -> Tensor:
        return self.times_s[:, :, None].expand_as(self.known)

    def inputs(self) -> tuple[Tensor, Tensor]:
        """The poses as numbers to predict from `(batch, frame, joint, 3)`, and which of them are known.

        Of up to `INPUT_FRAMES` frames, evenly spaced: mean velocities from each earlier frame to the last
        known time of the joint, metres a second. In place of the last frame: the last known pose, metres.
        Zeros where nothing is known. Flags are `(batch, frame, joint)`.
        """
        frames = input_frames(self.known.shape[1])[:-1]
        moved_BFJ3 = self.last_pose_m[:, None] - self.positions_m[:, frames]
        earlier_BFJ = self._earlier[:, frames]
        last_s = _at(self._clock[..., None], _last_frame(self.known))[..., 0]
        elapsed_BFJ = torch.where(earlier_BFJ > 0, last_s[:, None] - self._clock[:, frames], 1.0)
        velocity_BFJ3 = moved_BFJ3 * (earlier_BFJ / elapsed_BFJ)[..., None]
        return (
            torch.cat((velocity_BFJ3, self.last_pose_m[:, None]), dim=1),
            torch.cat((earlier_BFJ, self.last_known[:, None]), dim=1),
        )

    def without(self, dropped: Tensor) -> "ObservedPoses":
        """The same poses, with nothing known of the clips that are marked in `dropped` `(batch,)`."""
        kept_B11 = 1 - dropped.to(self.known.dtype)[:, None, None]
        return ObservedPoses(self.positions_m * kept_B11[..., None], self.known * kept_B11, self.times_s)

    def to(self, device: torch.device) -> "ObservedPoses":
        """The same poses on `device`."""
        return ObservedPoses(*(item.to(device) for item in (self.positions_m, self.known, self.times_s)))


def _last_frame(known_BFJ: Tensor) -> Tensor:
    """Index `(batch, joint)` of each joint's last known frame, the last frame of all where none is."""
    num_frames = known_BFJ.shape[1]
    return num_frames - 1 - known_BFJ.flip(1).argmax(dim=1)


def _at(values_BFJD: Tensor, frame_BJ: Tensor) -> Tensor:
    """`(batch, joint, dim)` of each joint at its own frame."""
    index = frame_BJ[:, None, :, None].expand(-1, 1, -1, values_BFJD.shape[-1])
    return values_BFJD.gather(1, index)[:, 0]


def observed_poses(trajectories: Sequence[Trajectory], times_s: Sequence[npt.ArrayLike]) -> ObservedPoses:
    """The observed poses of clips on the CPU; `times_s` are the times of each clip's observed frames."""
    known_BFJ = np.stack([item.observed_confidence > 0 for item in trajectories]).astype(np.float32)
    positions_m = np.stack([item.observed_m for item in trajectories]) * known_BFJ[..., np.newaxis]
    clock_BF = np.stack([np.asarray(times, dtype=np.float64) for times in times_s])
    return ObservedPoses(
        positions_m=torch.from_numpy(positions_m),
        known=torch.from_numpy(known_BFJ),
        times_s=torch.from_numpy((clock_BF - clock_BF[:, -1:]).astype(np.float32)),
    )


@dataclass(frozen=True, slots=True)
class TrajectoryBatch:
    """Joints of some clips, float32, metres, in the frame of reference of `stages.data.trajectories`."""

    poses: ObservedPoses
    future_m: Tensor
    """`(batch, step, frame, joint, 3)`"""
    future_confidence: Tensor
    """`(batch, step, frame, joint)`"""

    @property
    def last_known(self) -> Tensor:
        """`(batch, joint)`: 1 where a joint is known at any observed frame, else 0."""
        return self.poses.last_known

    @property
    def counted(self) -> Tensor:
        """Labelled joint-frames of joints that were seen before, `(batch, step, frame, joint)` bool."""
        return (self.future_confidence > 0) & (self.last_known > 0)[:, None, None]

    def to(self, device: torch.device) -> "TrajectoryBatch":
        """The same joints on `device`."""
        return TrajectoryBatch(
            self.poses.to(device), self.future_m.to(device), self.future_confidence.to(device)
        )
