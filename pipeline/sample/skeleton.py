"""The hand as a tree of bodies that turn on hinges, and their poses for given angles.

Plain arrays, so that the shipped poses can be written out without the simulator that they were rendered with.
Shape letters: F frames, B bodies, J joints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

Indices = npt.NDArray[np.int64]

BASE_CHANNELS = ("x", "y", "z", "yaw", "pitch", "roll")
"""Position of the wrist (m) and rotation of the forearm (rad): the first channels of a hand's state."""

NUM_BASE = len(BASE_CHANNELS)

WRIST_BODY = "wrist"


@dataclass(frozen=True, slots=True)
class Skeleton:
    """Bodies, parents first, body 0 the forearm; and points of them that are EgoDex joints."""

    bodies: tuple[str, ...]
    parents: Indices
    offsets_m: Floats
    """`(B, 3)` in the parent."""
    quaternions: Floats
    """`(B, 4)` w x y z: how a body is turned in its parent at angle 0."""
    axes: Floats
    """`(B, 3)` of the hinge in the body; zeros for one that does not turn."""
    limits: Floats
    """`(B, 2)` rad."""
    joints: tuple[str, ...]
    joint_bodies: Indices
    joint_offsets_m: Floats
    """`(J, 3)` in the body."""

    @property
    def num_channels(self) -> int:
        """Channels of a state: the base, then an angle for each body after the forearm."""
        return NUM_BASE + len(self.bodies) - 1

    def channel(self, body: str) -> int:
        """The index of a body's angle in a state."""
        return NUM_BASE + self.bodies.index(body) - 1

    def bodies_of(self, states: Floats) -> tuple[Floats, Floats]:
        """Origins `(F, B, 3)` and rotations `(F, B, 3, 3)` of bodies in states `(F, channel)`."""
        angles = np.zeros((len(states), len(self.bodies)))
        angles[:, 1:] = states[:, NUM_BASE:]
        origins = np.empty((len(states), len(self.bodies), 3))
        rotations = np.empty((len(states), len(self.bodies), 3, 3))
        rotations[:, 0] = forearm_rotation(states[:, 3:6])
        to_wrist = self.offsets_m[self.bodies.index(WRIST_BODY)]
        origins[:, 0] = states[:, :3] - rotations[:, 0] @ to_wrist
        for body in range(1, len(self.bodies)):
            parent, rest = self.parents[body], matrix(self.quaternions[body])
            origins[:, body] = origins[:, parent] + rotations[:, parent] @ self.offsets_m[body]
            turn = about(self.axes[body], angles[:, body])
            rotations[:, body] = rotations[:, parent] @ rest @ turn
        return origins, rotations

    def joint_poses(self, states: Floats) -> Floats:
        """Transforms `(F, J, 4, 4)` of the EgoDex joints, joint to world (z up)."""
        origins, rotations = self.bodies_of(states)
        poses = np.zeros((len(states), len(self.joints), 4, 4))
        poses[..., :3, :3] = rotations[:, self.joint_bodies]
        shift = np.einsum("fjab,jb->fja", poses[..., :3, :3], self.joint_offsets_m)
        poses[..., :3, 3] = origins[:, self.joint_bodies] + shift
        poses[..., 3, 3] = 1.0
        return poses


def about(axis: Floats, angles: Floats) -> Floats:
    """Rotations `(F, 3, 3)` by angles `(F,)` about a unit axis `(3,)`; the identity for a zero axis."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    sine, cosine = np.sin(angles)[:, None, None], np.cos(angles)[:, None, None]
    return np.asarray(np.eye(3) + sine * cross + (1 - cosine) * (cross @ cross))


def matrix(quaternion: Floats) -> Floats:
    """The rotation `(3, 3)` of a unit quaternion w x y z."""
    w, vector = quaternion[0], quaternion[1:]
    x, y, z = vector
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + 2 * w * cross + 2 * cross @ cross)


X, Y, Z = np.eye(3)

# The model's hand points along its z, its palm to -y. Here: fingers forward (world y), palm down (world -z).
HAND_FORWARD = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])

# A camera that looks forward (world y) with its own y down and z forward.
CAMERA_FORWARD = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])


def forearm_rotation(angles: Floats) -> Floats:
    """Forearm to world `(F, 3, 3)` from `(F, 3)`: yaw to the left, fingers up, thumb up."""
    yaw, pitch, roll = angles.T
    return np.asarray(about(Z, yaw) @ about(X, pitch) @ about(Y, roll) @ HAND_FORWARD)


def camera_rotation(angles: Floats) -> Floats:
    """Camera to world `(F, 3, 3)`, x right, y down, z forward, from yaw to the left, pitch up, roll right."""
    yaw, pitch, roll = angles.T
    return np.asarray(about(Z, yaw) @ about(X, pitch) @ about(Y, roll) @ CAMERA_FORWARD)


def transforms(positions_m: Floats, rotations: Floats) -> Floats:
    """`(F, 4, 4)` from `(F, 3)` and `(F, 3, 3)`."""
    poses = np.zeros((len(positions_m), 4, 4))
    poses[:, :3, :3], poses[:, :3, 3], poses[:, 3, 3] = rotations, positions_m, 1.0
    return poses


def camera_poses(camera: Floats) -> Floats:
    """Camera to world `(F, 4, 4)` of camera channels `(F, 6)`."""
    return transforms(camera[:, :3], camera_rotation(camera[:, 3:]))
