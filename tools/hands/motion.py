"""An episode's motion, frame by frame: states of the hand, poses of what it takes, and the camera's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hands.grasp import close_around, lowest_wrist_m, opened, relaxed, wrist_for
from hands.minimum_jerk import Path, draw_sway, minimum_jerk
from hands.plan import FPS, PAD_HEIGHT_M, Plan, draw_plan
from hands.things import KINDS, Grasp, Thing
from thinkjepa.cache import ThinkJepaError
from thinkjepa.pipeline.sample.skeleton import NUM_BASE, Skeleton, transforms

Floats = npt.NDArray[np.float64]

ELBOW_M = (0.30, -0.20)
"""About where the wearer's right elbow hangs: the forearm points from there to the hand."""

FOREARM_PITCH_AND_ROLL: dict[Grasp, tuple[float, float]] = {"over": (-0.16, 0.32), "side": (-0.10, 1.15)}

WRIST_FLEXION: dict[Grasp, float] = {"over": 0.22, "side": 0.0}

LIFTS_M = {"move": (0.05, 0.08), "carry": (0.09, 0.12), "slide": (0.0, 0.0), "turn": (0.05, 0.08)}

REST_HEIGHT_M = (0.008, 0.02)
"""Above the table: what the swaying needs."""

CLEARANCE_M = 0.004

MAX_DRAWS = 200


class MotionError(ThinkJepaError):
    """No table was found on which the hand reaches its thing and bumps into nothing."""


@dataclass(frozen=True, slots=True)
class Motion:
    """F frames. World: x right, y forward, z up, origin on the table below the wearer's chin, metres."""

    hand: Floats
    """`(F, channel)`: see `Skeleton`."""
    thing_poses: Floats
    """`(F, 4, 4)` of the thing that is taken."""
    camera: Floats
    """`(F, 6)`: position (m), and yaw, pitch and roll (rad)."""


def draw_episode(rng: np.random.Generator, task: str, skeleton: Skeleton) -> tuple[Plan, Motion]:
    """A plan whose motion bumps into nothing, and that motion. Raises MotionError where none is found."""
    for _ in range(MAX_DRAWS):
        plan = draw_plan(rng, task)
        motion = draw_motion(rng, plan, skeleton)
        if clearance_m(plan, motion, skeleton) > CLEARANCE_M:
            return plan, motion
    raise MotionError(f"task {task!r}: none of {MAX_DRAWS} tables lets the hand reach its thing freely")


def draw_motion(rng: np.random.Generator, plan: Plan, skeleton: Skeleton) -> Motion:
    """The hand rests, reaches, grasps, brings, releases and goes back."""
    times_s = np.arange(plan.timing.num_frames) / FPS
    hand = _hand_path(rng, plan, skeleton).at(times_s)
    timing = plan.timing
    # Nothing sways while a thing is held: it would leave the table, or sink into it.
    free = 1 - minimum_jerk(times_s, timing.reach_s, timing.grasp_s)
    free += minimum_jerk(times_s, timing.retreat_s, timing.rest_s)
    sizes = [0.006, 0.006, 0.003, 0.05, 0.03, 0.05, *[0.05] * (skeleton.num_channels - NUM_BASE)]
    hand += free[:, None] * draw_sway(rng, sizes).at(times_s)
    hand[:, NUM_BASE:] = np.clip(hand[:, NUM_BASE:], *skeleton.limits[1:].T)
    return Motion(hand, _thing_poses(plan, skeleton, hand, times_s), _camera_path(rng, plan, times_s))


def clearance_m(plan: Plan, motion: Motion, skeleton: Skeleton) -> float:
    """Smallest distance of the hand, or of the thing that it holds, from all other things."""
    origins, _ = skeleton.bodies_of(motion.hand[::3])
    forearm, wrist = origins[:, 0], origins[:, 1]
    sleeve = wrist[:, None] + np.linspace(0, 0.7, 6)[:, None] * (forearm - wrist)[:, None]
    tips = skeleton.joint_poses(motion.hand[::3])[..., :3, 3]
    reached = np.concatenate([origins[:, 1:], tips[:, 2:]], axis=1)
    held = plan.things[0]
    held_radius_m = float(np.hypot(*held.half_sizes_m[:2]))
    distances = []
    for other in plan.things[1:]:
        distances += [other.distances_m(reached).min() - 0.01, other.distances_m(sleeve).min() - 0.035]
        distances.append(other.distances_m(motion.thing_poses[::3, :3, 3]).min() - held_radius_m)
    return float(min(distances))


def _hand_path(rng: np.random.Generator, plan: Plan, skeleton: Skeleton) -> Path:
    timing, thing = plan.timing, plan.things[0]
    grasp = KINDS[thing.kind].grasp
    open_hand = opened(skeleton, grasp)
    open_hand[skeleton.channel("palm") - NUM_BASE] = WRIST_FLEXION[grasp]
    base = _grasping_base(rng, skeleton, thing, open_hand)
    holding = close_around(skeleton, thing, base, open_hand)

    rest = _resting_state(rng, skeleton)
    path = Path(rest)
    reach_s, grasp_s, release_s = timing.reach_s, timing.grasp_s, timing.release_s
    path.move_to(np.concatenate([base, open_hand]), reach_s, grasp_s)
    _approach(path, grasp, (reach_s, reach_s + 0.6 * (grasp_s - reach_s), grasp_s))
    path.move_to(np.concatenate([base, holding]), grasp_s, timing.bring_s)
    _bring(rng, path, plan)
    base = path.end[:NUM_BASE]
    path.move_to(np.concatenate([base, open_hand]), release_s, timing.retreat_s)
    retreat_s = timing.retreat_s - 0.25 * (timing.retreat_s - release_s)
    path.move_to(_resting_state(rng, skeleton), timing.retreat_s, timing.rest_s)
    _approach(path, grasp, (retreat_s, 0.6 * timing.retreat_s + 0.4 * timing.rest_s, timing.rest_s))
    return path


def _approach(path: Path, grasp: Grasp, times_s: tuple[float, float, float]) -> None:
    """Come to a thing, or leave it, from above or from its side instead of through it."""
    shift = np.zeros_like(path.start)
    shift[:3] = (0.0, -0.01, 0.07) if grasp == "over" else (0.05, -0.05, 0.02)
    path.bump(shift, *times_s)


def _bring(rng: np.random.Generator, path: Path, plan: Plan) -> None:
    """Move what is held onto its pad, turned about the vertical only, so that it stays upright."""
    timing, thing = plan.timing, plan.things[0]
    start_s, length_s = timing.bring_s, timing.release_s - timing.bring_s
    x_m, y_m = plan.pads_m[plan.place]
    held = path.end
    # About the thing's own axis: the wrist turns around it.
    lever_m = held[:2] - thing.center_m[:2]
    turn = _yaw_to(x_m + lever_m[0], y_m + lever_m[1]) - _yaw_to(held[0], held[1])
    if plan.verb == "turn":
        turn += rng.choice([-1, 1]) * rng.uniform(0.25, 0.45)
    cosine, sine = np.cos(turn), np.sin(turn)
    lever_m = np.array([cosine * lever_m[0] - sine * lever_m[1], sine * lever_m[0] + cosine * lever_m[1]])
    target = held.copy()
    target[:2], target[3] = np.array([x_m, y_m]) + lever_m, held[3] + turn
    target[2] += PAD_HEIGHT_M
    lift = np.zeros_like(held)
    lift[2] = rng.uniform(*LIFTS_M[plan.verb])
    path.bump(lift, start_s, start_s + 0.5 * length_s, start_s + length_s)
    path.move_to(target, start_s + 0.1 * length_s, start_s + 0.95 * length_s)


def _thing_poses(plan: Plan, skeleton: Skeleton, hand: Floats, times_s: Floats) -> Floats:
    """Poses of the taken thing: at its first position, then with the palm, then where it was put."""
    thing = plan.things[0]
    start = transforms(thing.center_m[None], _about_z(thing.yaw)[None])[0]
    palm = skeleton.bodies.index("palm")
    origins, rotations = skeleton.bodies_of(hand)
    palms = transforms(origins[:, palm], rotations[:, palm])
    poses = np.repeat(start[None], len(times_s), axis=0)
    held = np.flatnonzero((times_s >= plan.timing.bring_s) & (times_s <= plan.timing.release_s))
    poses[held] = palms[held] @ np.linalg.inv(palms[held[0]]) @ start
    poses[held[-1] + 1 :] = poses[held[-1]]
    return poses


def _camera_path(rng: np.random.Generator, plan: Plan, times_s: Floats) -> Floats:
    """A head that sways, and whose gaze follows the hand a little once that has set out."""
    look, timing, thing = plan.look, plan.timing, plan.things[0]
    eye = np.array(look.eye_m) + draw_sway(rng, [0.010, 0.007, 0.005]).at(times_s)
    gaze = Path(np.array(look.gaze_m))
    follow = rng.uniform(0.1, 0.25)
    gaze.move(follow * (thing.center_m - gaze.start), timing.reach_s, timing.grasp_s)
    pad = np.array([*plan.pads_m[plan.place], 0.0])
    gaze.move(follow * (pad - thing.center_m), timing.bring_s, timing.release_s)
    x, y, z = (gaze.at(times_s) - eye).T
    angles = np.stack([np.arctan2(-x, y), np.arctan2(z, np.hypot(x, y)), np.full_like(x, look.tilt)], axis=-1)
    angles += draw_sway(rng, [0.012, 0.010, 0.015]).at(times_s)
    return np.concatenate([eye, angles], axis=1)


def _grasping_base(rng: np.random.Generator, skeleton: Skeleton, thing: Thing, open_hand: Floats) -> Floats:
    pitch, roll = FOREARM_PITCH_AND_ROLL[KINDS[thing.kind].grasp]
    pitch, roll = pitch + rng.uniform(-0.06, 0.06), roll + rng.uniform(-0.1, 0.1)
    wrist = thing.center_m
    for _ in range(3):  # the yaw depends on where the wrist is, and that on the yaw
        turn = np.array([_yaw_to(wrist[0], wrist[1]), pitch, roll])
        wrist = wrist_for(skeleton, thing, open_hand, turn)
    return np.concatenate([wrist, turn])


def _resting_state(rng: np.random.Generator, skeleton: Skeleton) -> Floats:
    """A hand that rests near the table's edge, at the lower right of the picture."""
    x_m, y_m = rng.uniform((0.135, -0.05), (0.20, 0.02))
    turn = [_yaw_to(x_m, y_m) * 0.5, *rng.uniform((-0.15, 0.1), (0.0, 0.5))]
    state = np.concatenate([[x_m, y_m, 0.0], turn, relaxed(skeleton)])
    state[2] = lowest_wrist_m(skeleton, state) + rng.uniform(*REST_HEIGHT_M)
    return state


def _yaw_to(x_m: float, y_m: float) -> float:
    """The forearm's yaw that points from the elbow to here."""
    return float(np.arctan2(ELBOW_M[0] - x_m, y_m - ELBOW_M[1]))


def _about_z(yaw: float) -> Floats:
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
