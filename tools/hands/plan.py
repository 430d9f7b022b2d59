"""Plan of an episode, drawn from its seed: things and pads, times of all actions, light, camera."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from hands.things import COLORS, KINDS, Thing, draw_thing
from thinkjepa.pipeline.sample.episodes import PLACES

Floats = npt.NDArray[np.float64]

Color = tuple[float, float, float]

Condition = Literal["cue", "no-cue", "late-cue"]

CONDITIONS: tuple[Condition, ...] = get_args(Condition)

Pairs = Literal["all", "seen"]

FPS = 20

TASKS = {
    "move_ball": ("ball", "move"),
    "move_cube": ("cube", "move"),
    "move_lemon": ("lemon", "move"),
    "carry_can": ("can", "carry"),
    "carry_bottle": ("bottle", "carry"),
    "slide_box": ("box", "slide"),
    "slide_cup": ("cup", "slide"),
    "turn_cube": ("cube", "turn"),
}
"""Task -> what is taken, and how it is brought to its pad."""

SENTENCES = {
    "move": "Pick up the {thing} and put it on the {place} pad, then put it back.",
    "carry": "Lift the {thing} high and carry it to the {place} pad, then carry it back.",
    "slide": "Slide the {thing} over the table to the {place} pad, then slide it back.",
    "turn": "Pick up the {thing}, turn it and put it on the {place} pad, then put it back.",
}

NUM_CANDIDATES = 3
"""Things that the hand might take: of different colors, so that a color tells which."""

COLUMNS_X_M = (-0.165, -0.055, 0.055, 0.165)

ROWS_Y_M = (0.205, 0.31, 0.415)

JITTER_M = 0.010

PAD_RADIUS_M, PAD_HEIGHT_M = 0.042, 0.002

SKIN: tuple[Color, ...] = (
    (0.93, 0.72, 0.60),
    (0.85, 0.61, 0.48),
    (0.72, 0.50, 0.37),
    (0.53, 0.35, 0.25),
    (0.38, 0.25, 0.18),
)

SLEEVES: tuple[Color, ...] = ((0.2, 0.25, 0.35), (0.55, 0.55, 0.52), (0.15, 0.15, 0.16), (0.45, 0.2, 0.2))

TABLES: tuple[Color, ...] = (
    (0.62, 0.47, 0.32),
    (0.45, 0.32, 0.22),
    (0.72, 0.68, 0.60),
    (0.42, 0.44, 0.46),
    (0.35, 0.42, 0.38),
)

CLUTTER = ("pen", "coin", "note", "ring")

BRING_S = {"move": 0.85, "carry": 0.95, "slide": 0.8, "turn": 0.95}
"""Seconds that bringing a thing to its pad takes at pace 1, by verb."""

FUTURE_FRAMES = 130
"""Frames from the split on: 6.5 s, so that four windows of 1.6 s follow one another."""

HELD_OUT_PAIRS = frozenset((color, PLACES[number % len(PLACES)]) for number, color in enumerate(COLORS))
"""Pairs of color and place that training never shows: every color and every place is in others."""


@dataclass(frozen=True, slots=True)
class Act:
    """Times of taking a thing and putting it elsewhere, seconds since the video's start.

    Each phase begins where the one before it ends.
    """

    reach_s: float
    """The hand sets out."""
    grasp_s: float
    bring_s: float
    release_s: float
    retreat_s: float
    rest_s: float

    @property
    def held_frames(self) -> tuple[int, int]:
        """First frame in which the thing is held, and the first in which it is not any more."""
        return int(np.ceil(self.bring_s * FPS)), int(np.floor(self.release_s * FPS)) + 1


@dataclass(frozen=True, slots=True)
class Timing:
    """Course of an episode: a card, and after the split a thing is put on a pad and later put back."""

    card_on_s: float
    card_off_s: float
    split_frame: int
    put: Act
    """It sets out at the split, not before."""
    back: Act
    num_frames: int

    def card_frames(self, condition: Condition) -> tuple[int, int]:
        """First frame with the card, and the first without it again.

        A neutral card is shown when the telling one would be, a late card until the split.
        """
        start, stop = round(self.card_on_s * FPS), round(self.card_off_s * FPS)
        shift = self.split_frame - stop if condition == "late-cue" else 0
        return start + shift, stop + shift


CARD_BODY, NEUTRAL_CARD_BODY = "card", "neutral_card"


def shown_card(plan: Plan, condition: Condition, frame: int) -> str | None:
    """Name of the card's body in a frame, or None where no card is shown."""
    if frame not in range(*plan.timing.card_frames(condition)):
        return None
    return NEUTRAL_CARD_BODY if condition == "no-cue" else CARD_BODY


@dataclass(frozen=True, slots=True)
class Look:
    """Settings of the picture alone, and the camera's position."""

    skin: Color
    sleeve: Color
    table: Color
    texture_seed: int
    light_m: tuple[float, float, float]
    light: Color
    ambient: float
    eye_m: tuple[float, float, float]
    gaze_m: tuple[float, float, float]
    tilt: float
    vertical_fov: float
    clutter: tuple[tuple[str, float, float, float], ...]
    """Kind, x and y (m), angle."""


@dataclass(frozen=True, slots=True)
class Plan:
    """An episode. `things[0]` is the one that the hand takes, to `pads_m[place]`."""

    task: str
    things: tuple[Thing, ...]
    pads_m: tuple[tuple[float, float], ...]
    """x and y, from left to right."""
    place: int
    timing: Timing
    look: Look

    @property
    def verb(self) -> str:
        return TASKS[self.task][1]

    @property
    def pair(self) -> tuple[str, str]:
        """Color of the thing that is taken, and the place where it goes."""
        return self.things[0].color, PLACES[self.place]

    @property
    def description(self) -> str:
        return SENTENCES[self.verb].format(thing=self.things[0].name, place=PLACES[self.place])


def episode_rng(seed: int, episode: int) -> np.random.Generator:
    """Randomness that depends on these two alone, so that more episodes only add to those already there."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, episode])))


def task_of(episode: int) -> str:
    """Tasks in turn."""
    return list(TASKS)[episode % len(TASKS)]


def draw_plan(rng: np.random.Generator, task: str) -> Plan:
    """A table, a thing to take, a place for it, and when what is done."""
    columns = rng.permutation(len(COLUMNS_X_M))[: len(PLACES)]
    pads = sorted((int(column), int(rng.integers(len(ROWS_Y_M)))) for column in columns)
    cells = [(c, r) for c in range(len(COLUMNS_X_M)) for r in range(len(ROWS_Y_M)) if (c, r) not in pads]
    free = [cells[index] for index in rng.permutation(len(cells))]
    pads_m = tuple(_spot(rng, cell) for cell in pads)
    things = _draw_things(rng, task, free[:NUM_CANDIDATES])
    return Plan(
        task=task,
        things=things,
        pads_m=pads_m,
        place=int(rng.integers(len(PLACES))),
        timing=_draw_timing(rng, TASKS[task][1]),
        look=_draw_look(rng, free[NUM_CANDIDATES:]),
    )


def _draw_things(rng: np.random.Generator, task: str, cells: list[tuple[int, int]]) -> tuple[Thing, ...]:
    others = [str(kind) for kind in rng.choice(list(KINDS), len(cells) - 1)]
    colors = [str(color) for color in rng.permutation(list(COLORS))]
    kinds = [TASKS[task][0], *others]
    return tuple(
        draw_thing(rng, kind, color, *_spot(rng, cell))
        for kind, color, cell in zip(kinds, colors, cells, strict=False)
    )


def _draw_timing(rng: np.random.Generator, verb: str) -> Timing:
    """The card is gone for half a second before the split, and the hand rests until the split."""
    card_on_s, card_s = rng.uniform(0.2, 0.35), rng.uniform(0.55, 0.7)
    card_off_s = card_on_s + card_s
    split_frame = round((card_off_s + rng.uniform(0.55, 0.7)) * FPS)
    put = _draw_act(rng, verb, split_frame / FPS + rng.uniform(0.0, 0.04))
    back = _draw_act(rng, verb, put.rest_s + rng.uniform(0.9, 1.2))
    return Timing(
        card_on_s=round(float(card_on_s), 4),
        card_off_s=round(float(card_off_s), 4),
        split_frame=split_frame,
        put=put,
        back=back,
        num_frames=split_frame + FUTURE_FRAMES,
    )


def _draw_act(rng: np.random.Generator, verb: str, start_s: float) -> Act:
    pace = rng.uniform(0.54, 0.64)
    bring_s = BRING_S[verb] * rng.uniform(0.9, 1.1)
    lengths_s = [rng.uniform(0.7, 0.9), rng.uniform(0.26, 0.34), bring_s, rng.uniform(0.25, 0.35), 0.7]
    times_s = start_s + pace * np.cumsum([0.0, *lengths_s])
    return Act(*(round(float(time_s), 4) for time_s in times_s))


def _draw_look(rng: np.random.Generator, free: list[tuple[int, int]]) -> Look:
    clutter = tuple(
        (str(rng.choice(CLUTTER)), *_spot(rng, cell), float(rng.uniform(0, np.pi)))
        for cell in free[: rng.integers(3)]
    )
    warmth = rng.uniform(-0.08, 0.08)
    strength = rng.uniform(0.45, 0.75)
    return Look(
        skin=_tinted(rng, SKIN),
        sleeve=_tinted(rng, SLEEVES),
        table=_tinted(rng, TABLES),
        texture_seed=int(rng.integers(2**31)),
        light_m=(float(rng.uniform(-0.8, 0.8)), float(rng.uniform(-0.2, 1.0)), float(rng.uniform(1.0, 1.8))),
        light=(float(strength + warmth), float(strength), float(strength - warmth)),
        ambient=float(rng.uniform(0.3, 0.45)),
        eye_m=(
            float(rng.uniform(-0.03, 0.03)),
            float(rng.uniform(-0.06, 0.0)),
            float(rng.uniform(0.44, 0.52)),
        ),
        gaze_m=(float(rng.uniform(-0.015, 0.015)), float(rng.uniform(0.24, 0.262)), 0.0),
        tilt=float(rng.uniform(-0.06, 0.06)),
        vertical_fov=float(rng.uniform(0.84, 0.92)),
        clutter=clutter,
    )


def _tinted(rng: np.random.Generator, choices: tuple[Color, ...]) -> Color:
    color = np.array(choices[rng.integers(len(choices))]) + rng.uniform(-0.03, 0.03, 3)
    red, green, blue = np.clip(color, 0.02, 0.98).round(4).tolist()
    return red, green, blue


def _spot(rng: np.random.Generator, cell: tuple[int, int]) -> tuple[float, float]:
    column, row = cell
    x_m, y_m = np.array([COLUMNS_X_M[column], ROWS_Y_M[row]]) + rng.uniform(-JITTER_M, JITTER_M, 2)
    return round(float(x_m), 4), round(float(y_m), 4)
