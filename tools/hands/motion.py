"""An episode's motion, frame by frame: states of the hand, poses of what it takes, and the camera's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hands.grasp import close_around, lowest_wrist_m, opened, relaxed, wrist_for
from hands.minimum_jerk import Path, draw_sway, minimum_jerk
from hands.plan import FPS, HELD_OUT_PAIRS, PAD_HEIGHT_M, Act, Pairs, Plan, draw_plan
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


def draw_episode(
    rng: np.random.Generator, task: str, skeleton: Skeleton, *, pairs: Pairs = "all"
) -> tuple[Plan, Motion]:
    """A plan whose motion bumps into nothing, and that motion; `seen` draws no pair that is held out.

    Raises MotionError where none is found.
    """
    for _ in range(MAX_DRAWS):
        plan = draw_plan(rng, task)
        if pairs == "seen" and plan.pair in HELD_OUT_PAIRS:
            continue
        motion = draw_motion(rng, plan, skeleton)
        if clearance_m(plan, motion, skeleton) > CLEARANCE_M:
            return plan, motion
    raise MotionError(f"task {task!r}: none of {MAX_DRAWS} tables lets the hand reach its thing freely")


def draw_motion(rng: np.random.Generator, plan: Plan, skeleton: Skeleton) -> Motion:
    """The hand rests, puts its thing on the pad, rests, puts it back, and rests again."""
    times_s = np.arange(plan.timing.num_frames) / FPS
    hand = _hand_path(rng, plan, skeleton).at(times_s)
    # Nothing sways while a thing is held: it would leave the table, or sink into it.
    free = np.ones(len(times_s))
    for act in (plan.timing.put, plan.timing.back):
        free -= minimum_jerk(times_s, act.reach_s, act.grasp_s)
        free += minimum_jerk(times_s, act.retreat_s, act.rest_s)
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

    path = Path(_resting_state(rng, skeleton))
    _take(path, base, open_hand, holding, grasp, timing.put)
    _bring(path, _over_pad(rng, path.end, plan), rng.uniform(*LIFTS_M[plan.verb]), timing.put)
    put = path.end[:NUM_BASE]
    _leave(path, put, open_hand, _resting_state(rng, skeleton), grasp, timing.put)
    _take(path, put, open_hand, holding, grasp, timing.back)
    _bring(path, np.concatenate([base, holding]), rng.uniform(*LIFTS_M[plan.verb]), timing.back)
    _leave(path, base, open_hand, _resting_state(rng, skeleton), grasp, timing.back)
    return path


def _take(path: Path, base: Floats, open_hand: Floats, holding: Floats, grasp: Grasp, act: Act) -> None:
    """Reach for the thing with an open hand, and close it."""
    path.move_to(np.concatenate([base, open_hand]), act.reach_s, act.grasp_s)
    _approach(path, grasp, (act.reach_s, act.reach_s + 0.6 * (act.grasp_s - act.reach_s), act.grasp_s))
    path.move_to(np.concatenate([base, holding]), act.grasp_s, act.bring_s)


def _leave(path: Path, base: Floats, open_hand: Floats, rest: Floats, grasp: Grasp, act: Act) -> None:
    """Open the hand, and go to where it rests."""
    path.move_to(np.concatenate([base, open_hand]), act.release_s, act.retreat_s)
    retreat_s = act.retreat_s - 0.25 * (act.retreat_s - act.release_s)
    path.move_to(rest, act.retreat_s, act.rest_s)
    _approach(path, grasp, (retreat_s, 0.6 * act.retreat_s + 0.4 * act.rest_s, act.rest_s))


def _approach(path: Path, grasp: Grasp, times_s: tuple[float, float, float]) -> None:
    """Come to a thing, or leave it, from above or from its side instead of through it."""
    shift = np.zeros_like(path.start)
    shift[:3] = (0.0, -0.01, 0.07) if grasp == "over" else (0.05, -0.05, 0.02)
    path.bump(shift, *times_s)


def _bring(path: Path, target: Floats, lift_m: float, act: Act) -> None:
    """Move what is held, lifted on the way."""
    length_s = act.release_s - act.bring_s
    lift = np.zeros_like(target)
    lift[2] = lift_m
    path.bump(lift, act.bring_s, act.bring_s + 0.5 * length_s, act.release_s)
    path.move_to(target, act.bring_s + 0.1 * length_s, act.bring_s + 0.95 * length_s)


def _over_pad(rng: np.random.Generator, held: Floats, plan: Plan) -> Floats:
    """The hand's state with its thing upright on the pad: it is turned about the vertical only."""
    thing = plan.things[0]
    x_m, y_m = plan.pads_m[plan.place]
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
    return target


def _thing_poses(plan: Plan, skeleton: Skeleton, hand: Floats, times_s: Floats) -> Floats:
    """Poses of the taken thing: with the palm while it is held, else where it was put last."""
    thing = plan.things[0]
    start = transforms(thing.center_m[None], _about_z(thing.yaw)[None])[0]
    palm = skeleton.bodies.index("palm")
    origins, rotations = skeleton.bodies_of(hand)
    palms = transforms(origins[:, palm], rotations[:, palm])
    poses = np.repeat(start[None], len(times_s), axis=0)
    for act in (plan.timing.put, plan.timing.back):
        first, end = act.held_frames
        poses[first:end] = palms[first:end] @ np.linalg.inv(palms[first]) @ poses[first]
        poses[end:] = poses[end - 1]
    return poses


def _camera_path(rng: np.random.Generator, plan: Plan, times_s: Floats) -> Floats:
    """A head that sways, and whose gaze follows the hand a little once that has set out."""
    look, timing, thing = plan.look, plan.timing, plan.things[0]
    eye = np.array(look.eye_m) + draw_sway(rng, [0.010, 0.007, 0.005]).at(times_s)
    gaze = Path(np.array(look.gaze_m))
    follow = rng.uniform(0.1, 0.25)
    gaze.move(follow * (thing.center_m - gaze.start), timing.put.reach_s, timing.put.grasp_s)
    to_pad = follow * (np.array([*plan.pads_m[plan.place], 0.0]) - thing.center_m)
    gaze.move(to_pad, timing.put.bring_s, timing.put.release_s)
    gaze.move(-to_pad, timing.back.bring_s, timing.back.release_s)
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
