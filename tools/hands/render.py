"""Pictures of an episode, by MuJoCo without a window.

Needs the extra `sample` and a GL library. Shadows and multisampling are off: several times
as fast.
"""

from __future__ import annotations

import mujoco
import numpy as np
import numpy.typing as npt

from hands.motion import Motion
from hands.plan import Condition, Plan
from hands.scene import CARD_BODY, EYE_BODY, HAND_BODY, HIDDEN_M, THING_BODY, build_model, card_pose
from thinkjepa.pipeline.sample.skeleton import NUM_BASE, Skeleton, camera_poses

Frames = npt.NDArray[np.uint8]

Floats = npt.NDArray[np.float64]

# MuJoCo's cameras look along -z with y up.
TO_GL_CAMERA = np.diag([1.0, -1.0, -1.0])


def draw_frames(
    plan: Plan, motion: Motion, skeleton: Skeleton, *, condition: Condition, size_px: int
) -> Frames:
    """Frames `(F, size, size, 3)` as the wearer sees them."""
    model = build_model(plan, size_px=size_px)
    data = mujoco.MjData(model)
    origins, rotations = skeleton.bodies_of(motion.hand)
    cameras = camera_poses(motion.camera)
    card = range(*plan.timing.card_frames(condition))
    frames = np.empty((len(motion.hand), size_px, size_px, 3), dtype=np.uint8)
    with mujoco.Renderer(model, size_px, size_px) as renderer:
        for index in range(len(frames)):
            data.qpos[:] = motion.hand[index, NUM_BASE:]
            _put(model, data, HAND_BODY, origins[index, 0], quaternion_of(rotations[index, 0]))
            thing = motion.thing_poses[index]
            _put(model, data, THING_BODY, thing[:3, 3], quaternion_of(thing[:3, :3]))
            camera = cameras[index]
            _put(model, data, EYE_BODY, camera[:3, 3], quaternion_of(camera[:3, :3] @ TO_GL_CAMERA))
            position_m, quaternion = card_pose()
            _put(model, data, CARD_BODY, position_m if index in card else HIDDEN_M, quaternion)
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera="eye")
            renderer.render(out=frames[index])
    return frames


def _put(
    model: mujoco.MjModel, data: mujoco.MjData, body: str, position_m: Floats, quaternion: Floats
) -> None:
    number = model.body(body).mocapid[0]
    data.mocap_pos[number], data.mocap_quat[number] = position_m, quaternion


def quaternion_of(rotation: Floats) -> Floats:
    """The unit quaternion w x y z, w at least 0, of a rotation `(3, 3)`."""
    symmetric = np.empty((4, 4))
    diagonal = np.diag(rotation)
    symmetric[0, 0] = diagonal.sum()
    symmetric[0, 1:] = symmetric[1:, 0] = (
        rotation[2, 1] - rotation[1, 2],
        rotation[0, 2] - rotation[2, 0],
        rotation[1, 0] - rotation[0, 1],
    )
    symmetric[1:, 1:] = rotation + rotation.T - diagonal.sum() * np.eye(3)
    # The quaternion is the eigenvector of the largest eigenvalue: no case distinction, no division.
    quaternion = np.linalg.eigh(symmetric)[1][:, -1]
    return np.asarray(quaternion if quaternion[0] >= 0 else -quaternion)
