"""Pictures of an episode, by MuJoCo without a window.

Needs the extra `sample` and a GL library. Shadows and multisampling are off: several times
as fast.
"""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np
import numpy.typing as npt

from hands.motion import Motion
from hands.plan import CARD_BODY, NEUTRAL_CARD_BODY, Condition, Plan, shown_card
from hands.scene import EYE_BODY, HAND_BODY, HIDDEN_M, THING_BODY, build_model, card_pose
from thinkjepa.pipeline.sample.skeleton import NUM_BASE, Skeleton, camera_poses

Frames = npt.NDArray[np.uint8]

Floats = npt.NDArray[np.float64]

# MuJoCo's cameras look along -z with y up.
TO_GL_CAMERA = np.diag([1.0, -1.0, -1.0])


def draw_frames(
    plan: Plan,
    motion: Motion,
    skeleton: Skeleton,
    *,
    conditions: Sequence[Condition],
    size_px: int,
    chosen: Sequence[int] | None = None,
) -> dict[Condition, Frames]:
    """Frames `(F, size, size, 3)` under each condition as the wearer sees them.

    `chosen` are numbers of frames, by default all. What conditions share, all but the card, is drawn once.
    """
    model = build_model(plan, size_px=size_px)
    data = mujoco.MjData(model)
    origins, rotations = skeleton.bodies_of(motion.hand)
    cameras = camera_poses(motion.camera)
    numbers = range(len(motion.hand)) if chosen is None else chosen
    shape = (len(numbers), size_px, size_px, 3)
    frames = {condition: np.empty(shape, dtype=np.uint8) for condition in conditions}
    with mujoco.Renderer(model, size_px, size_px) as renderer:
        for row, number in enumerate(numbers):
            data.qpos[:] = motion.hand[number, NUM_BASE:]
            _put(model, data, HAND_BODY, origins[number, 0], quaternion_of(rotations[number, 0]))
            thing = motion.thing_poses[number]
            _put(model, data, THING_BODY, thing[:3, 3], quaternion_of(thing[:3, :3]))
            camera = cameras[number]
            _put(model, data, EYE_BODY, camera[:3, 3], quaternion_of(camera[:3, :3] @ TO_GL_CAMERA))
            drawn: dict[str | None, Frames] = {}
            for condition in conditions:
                card = shown_card(plan, condition, number)
                if card not in drawn:
                    drawn[card] = _draw(model, data, renderer, card=card)
                frames[condition][row] = drawn[card]
    return frames


def _draw(
    model: mujoco.MjModel, data: mujoco.MjData, renderer: mujoco.Renderer, *, card: str | None
) -> Frames:
    position_m, quaternion = card_pose()
    for body in (CARD_BODY, NEUTRAL_CARD_BODY):
        _put(model, data, body, position_m if body == card else HIDDEN_M, quaternion)
    mujoco.mj_forward(model, data)
    renderer.update_scene(data, camera="eye")
    return np.asarray(renderer.render())


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
