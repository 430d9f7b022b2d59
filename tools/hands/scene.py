"""An episode's scene for MuJoCo: Adroit's hand, from the installed gymnasium-robotics, and a table.

Needs the extra `sample`. Everything is placed frame by frame (mocap bodies, hinge angles): no physics.
"""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path

import mujoco
import numpy as np
import numpy.typing as npt
from PIL import Image

from hands.adroit import EGODEX_BODIES, EGODEX_SITES
from hands.plan import CARD_BODY, NEUTRAL_CARD_BODY, PAD_HEIGHT_M, PAD_RADIUS_M, Color, Plan
from hands.things import COLORS, KINDS, Thing
from thinkjepa.pipeline.sample.skeleton import Skeleton
from thinkjepa.pipeline.sample.videos import smooth_noise

Floats = npt.NDArray[np.float64]

MESHES = ("wrist", "palm", "lfmetacarpal", "knuckle", "F3", "F2", "F1", "TH3_z", "TH2_z", "TH1_z")

HAND_BODY, THING_BODY, EYE_BODY = "forearm", "thing", "eye"

# The card is held out where the left hand would hold it, nearer than all things, so that it hides none of
# them and none hides it; it leans towards the wearer's eyes.
CARD_M, CARD_TILT = (-0.085, 0.09, 0.04), -1.2

CARD_HALF_M = (0.092, 0.048)

DOTS_X_M = (-0.056, 0.0, 0.056)

DOT_RADIUS_M, GREY_DOT_RADIUS_M, RING_M = 0.030, 0.011, 0.004

CARD_EMISSION = 0.35
"""The card is distinct in any light."""

HIDDEN_M = np.array([0.0, 0.0, -5.0])

TABLE_TEXTURE_PX = 128


def adroit_folder() -> Path:
    """The folder of the installed package with the model of the hand."""
    spec = find_spec("gymnasium_robotics")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "envs" / "assets" / "adroit_hand"


def build_model(plan: Plan, *, size_px: int) -> mujoco.MjModel:
    """The scene of an episode."""
    assets = {"table.png": _table_picture(plan)}
    model: mujoco.MjModel = mujoco.MjModel.from_xml_string(_scene(plan, size_px=size_px), assets)
    return model


def read_skeleton() -> Skeleton:
    """The hand's tree of bodies, as the installed model has it."""
    model = mujoco.MjModel.from_xml_string(
        f"<mujoco>{_settings(64)}<worldbody>{_hand()}</worldbody></mujoco>"
    )
    names = tuple(model.body(number).name for number in range(1, model.nbody))
    axes, limits = np.zeros((len(names), 3)), np.zeros((len(names), 2))
    for joint in range(model.njnt):
        body = model.jnt_bodyid[joint] - 1
        axes[body], limits[body] = model.jnt_axis[joint], model.jnt_range[joint]
        assert not model.jnt_pos[joint].any(), "hinges pass through their body's origin"
    tips = {joint: model.site(site) for joint, site in EGODEX_SITES.items()}
    bodies = [names.index(body) for body in EGODEX_BODIES.values()]
    offsets_m = np.zeros((len(bodies), 3))
    return Skeleton(
        bodies=names,
        parents=model.body_parentid[1:].astype(np.int64) - 1,
        offsets_m=model.body_pos[1:].copy(),
        quaternions=model.body_quat[1:].copy(),
        axes=axes,
        limits=limits,
        joints=(*EGODEX_BODIES, *tips),
        joint_bodies=np.array([*bodies, *(int(tip.bodyid[0]) - 1 for tip in tips.values())]),
        joint_offsets_m=np.concatenate([offsets_m, np.array([tip.pos for tip in tips.values()])]),
    )


def _settings(size_px: int, skin: Color = (0.8, 0.6, 0.5)) -> str:
    meshes = "".join(f'<mesh name="{name}" file="{name}.stl" scale=".001 .001 .001"/>' for name in MESHES)
    return f"""
    <compiler angle="radian" meshdir="{adroit_folder() / "resources" / "meshes"}"/>
    <visual><global offwidth="{size_px}" offheight="{size_px}"/><map znear="0.02"/>
      <quality shadowsize="0" offsamples="0"/></visual>
    <default>
      <geom contype="0" conaffinity="0"/>
      <default class="D_Vizual"><geom type="mesh" group="1" material="skin"/></default>
      <default class="DC_Hand"><geom group="4"/></default>
      <default class="D_Touch"><site type="box" group="4"/></default>
    </default>
    <asset><material name="skin" rgba="{_rgb(skin)} 1" specular="0.15" shininess="0.2"/>{meshes}</asset>
    """


def _hand(sleeve: Color = (0.3, 0.3, 0.3)) -> str:
    """Adroit's hand on a forearm in a sleeve: the model's own forearm is a box of motors."""
    return f"""
    <body name="{HAND_BODY}" mocap="true">
      <geom type="capsule" fromto="0 0 0.30 0 0 0.395" size="0.024" material="skin"/>
      <geom type="capsule" fromto="0 0 -0.1 0 0 0.315" size="0.033" rgba="{_rgb(sleeve)} 1"/>
      <geom type="cylinder" fromto="0 0 0.31 0 0 0.348" size="0.030" rgba="{_rgb(sleeve)} 1"/>
      <include file="{adroit_folder() / "adroit_model.xml"}"/>
    </body>"""


def _scene(plan: Plan, *, size_px: int) -> str:
    look = plan.look
    light = " ".join(f"{value:.4f}" for value in look.light)
    taken, *others = plan.things
    return f"""<mujoco>
    {_settings(size_px, look.skin)}
    <visual><headlight ambient="{look.ambient} {look.ambient} {look.ambient}" diffuse=".12 .12 .12"
      specular="0 0 0"/></visual>
    <asset>
      <texture name="table" type="2d" file="table.png"/>
      <material name="table" texture="table" texrepeat="1 1" specular="0.05" shininess="0.1"/>
      {_card_materials(plan)}
    </asset>
    <worldbody>
      <light pos="{_numbers(look.light_m)}" dir="{_numbers(-np.array(look.light_m))}" diffuse="{light}"
        specular=".2 .2 .2" castshadow="false" directional="true"/>
      <geom type="box" pos="0 0.32 -0.02" size="0.55 0.36 0.02" material="table"/>
      <geom type="plane" pos="0 0 -0.7" size="4 4 0.1" rgba="0.33 0.33 0.36 1"/>
      {"".join(_pad(x_m, y_m) for x_m, y_m in plan.pads_m)}
      {"".join(_clutter(*item) for item in look.clutter)}
      {"".join(_placed(thing) for thing in others)}
      <body name="{THING_BODY}" mocap="true">{_geoms(taken)}</body>
      <body name="{CARD_BODY}" mocap="true">{_card(plan.place)}</body>
      <body name="{NEUTRAL_CARD_BODY}" mocap="true">{_card(None)}</body>
      {_hand(look.sleeve)}
      <body name="{EYE_BODY}" mocap="true"><camera name="eye" fovy="{np.degrees(look.vertical_fov)}"/></body>
    </worldbody></mujoco>"""


def card_pose() -> tuple[Floats, Floats]:
    """Position of the card's middle, and its rotation (w x y z), while it is shown."""
    return np.array(CARD_M), np.array([np.cos(CARD_TILT / 2), np.sin(CARD_TILT / 2), 0.0, 0.0])


def _card(told: int | None) -> str:
    """A white card with a dot per pad: the one where the thing goes is large and has its color.

    On a neutral card all are alike.
    """
    geoms = [f'<geom type="box" size="{CARD_HALF_M[0]} 0.002 {CARD_HALF_M[1]}" material="card"/>']
    for place, x_m in enumerate(DOTS_X_M):
        if place == told:
            geoms.append(_dot(x_m, 0.005, DOT_RADIUS_M, "card_color"))
            geoms.append(_dot(x_m, 0.004, DOT_RADIUS_M + RING_M, "card_ring"))
        else:
            geoms.append(_dot(x_m, 0.004, GREY_DOT_RADIUS_M, "card_grey"))
    return "".join(geoms)


def _card_materials(plan: Plan) -> str:
    colors: dict[str, Color] = {
        "card": (0.95, 0.93, 0.88),
        "card_color": COLORS[plan.things[0].color],
        "card_ring": (0.05, 0.05, 0.05),
        "card_grey": (0.5, 0.5, 0.5),
    }
    emission = f'emission="{CARD_EMISSION}" specular="0"'
    return "".join(
        f'<material name="{name}" rgba="{_rgb(rgb)} 1" {emission}/>' for name, rgb in colors.items()
    )


def _dot(x_m: float, height_m: float, radius_m: float, material: str) -> str:
    line = f'fromto="{x_m} {-height_m} 0 {x_m} 0 0"'
    return f'<geom type="cylinder" {line} size="{radius_m}" material="{material}"/>'


def _pad(x_m: float, y_m: float) -> str:
    half_m = PAD_HEIGHT_M / 2
    size = f'pos="{x_m} {y_m} {half_m}" size="{PAD_RADIUS_M} {half_m}"'
    return f'<geom type="cylinder" {size} rgba=".12 .12 .13 1"/>'


def _clutter(kind: str, x_m: float, y_m: float, angle: float) -> str:
    shapes = {
        "pen": 'type="capsule" size="0.005 0.06" euler="{tilt} 0 {angle}" rgba="0.1 0.1 0.25 1"',
        "coin": 'type="cylinder" size="0.012 0.0015" euler="0 0 {angle}" rgba="0.75 0.6 0.3 1"',
        "note": 'type="box" size="0.035 0.035 0.001" euler="0 0 {angle}" rgba="0.95 0.9 0.55 1"',
        "ring": 'type="cylinder" size="0.02 0.004" euler="0 0 {angle}" rgba="0.55 0.3 0.2 1"',
    }
    shape = shapes[kind].format(angle=angle, tilt=np.pi / 2)
    return f'<geom pos="{x_m} {y_m} 0.005" {shape}/>'


def _placed(thing: Thing) -> str:
    return f'<body pos="{_numbers(thing.center_m)}" euler="0 0 {thing.yaw}">{_geoms(thing)}</body>'


def _geoms(thing: Thing) -> str:
    """The shape that is grasped, and what makes a cup of a cylinder."""
    half_x, half_y, half_z = thing.half_sizes_m
    shape, rgb = KINDS[thing.kind].shape, _rgb(COLORS[thing.color])
    size = f"{half_x} {half_z}" if shape == "cylinder" else f"{half_x} {half_y} {half_z}"
    extras = {
        "cup": [_disc(half_z, 0.85 * half_x, 0.0008, ".12 .1 .09")],
        "can": [_disc(half_z, 0.9 * half_x, 0.001, ".75 .76 .78")],
        "bottle": [
            _disc(half_z + 0.015, 0.42 * half_x, 0.015, rgb),
            _disc(half_z + 0.034, 0.5 * half_x, 0.006, ".9 .9 .9"),
        ],
        "box": [
            f'<geom type="box" size="{0.35 * half_x} {half_y + 4e-4} {half_z + 4e-4}" rgba=".9 .88 .8 1"/>'
        ],
    }
    return "".join([f'<geom type="{shape}" size="{size}" rgba="{rgb} 1"/>', *extras.get(thing.kind, [])])


def _disc(z_m: float, radius_m: float, half_height_m: float, rgb: str) -> str:
    return f'<geom type="cylinder" pos="0 0 {z_m}" size="{radius_m} {half_height_m}" rgba="{rgb} 1"/>'


def _table_picture(plan: Plan) -> bytes:
    """A PNG of the table's color with soft grain along one side."""
    rng = np.random.default_rng(plan.look.texture_seed)
    side = TABLE_TEXTURE_PX
    grain = 0.6 * smooth_noise(side, side, 20, rng) + 0.4 * smooth_noise(side, 6 * side, 10, rng)[::6]
    shade = 1 + rng.uniform(0.1, 0.25) * (grain[..., None] - 0.5)
    pixels = np.clip(np.array(plan.look.table) * shade * 255, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _rgb(color: Color) -> str:
    return " ".join(f"{value:.4f}" for value in color)


def _numbers(values: npt.ArrayLike) -> str:
    return " ".join(f"{value:.6f}" for value in np.asarray(values))
