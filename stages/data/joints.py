"""Names of hand joints, as EgoDex has them, and the sets of them that people train on and report.

EgoDex (arXiv 2505.11709) labels 68 joints of the upper body; the paper (arXiv 2603.22281) trains on 52 of
them; EgoDex's benchmark measures 12.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from thinkjepa.stages.errors import StageError

HAND_SIDES = ("right", "left")
FINGERS = ("Little", "Ring", "Middle", "Index")
FINGER_PARTS = ("Metacarpal", "Knuckle", "IntermediateBase", "IntermediateTip", "Tip")
THUMB_PARTS = ("Knuckle", "IntermediateBase", "IntermediateTip", "Tip")


def _finger_joints(side: str) -> tuple[str, ...]:
    fingers = tuple(f"{side}{finger}Finger{part}" for finger in FINGERS for part in FINGER_PARTS)
    return fingers + tuple(f"{side}Thumb{part}" for part in THUMB_PARTS)


def _paper_joints(side: str) -> tuple[str, ...]:
    return (*_finger_joints(side), f"{side}Hand", f"{side}Forearm")


def _keypoints(side: str) -> tuple[str, ...]:
    tips = tuple(f"{side}{finger}FingerTip" for finger in FINGERS)
    return (f"{side}Hand", f"{side}ThumbTip", *tips)


PAPER_JOINTS = tuple(name for side in HAND_SIDES for name in _paper_joints(side))
"""The paper's 52: the right side's first."""

KEYPOINTS = tuple(name for side in HAND_SIDES for name in _keypoints(side))
"""The 12 of EgoDex's benchmark: wrists and fingertips."""

EGODEX_JOINTS = (
    *(name for name in PAPER_JOINTS),
    *(f"{side}{part}" for side in HAND_SIDES for part in ("Shoulder", "Arm")),
    "hip",
    *(f"spine{number}" for number in range(1, 8)),
    *(f"neck{number}" for number in range(1, 5)),
)
"""All 68; EgoDex's 69th transform is the camera's."""

MOST_NAMED = 4
"""Joints that a message lists by name."""

JOINT_SETS = {"paper": PAPER_JOINTS, "keypoints": KEYPOINTS}

JOINTS_HELP = (
    "Joints: auto (those of the paper's 52 that are known in the training clips, else all), all, paper (52), "
    "keypoints (12), or names separated by commas. Joints whose confidence is always 0 are left out."
)

HANDS_NEED_LABELS = (
    "hands are predicted only where videos have labels: docs/labels.md tells how to get some, "
    "`thinkjepa-data import` stores them without running a model"
)
"""Said wherever there are no labels: after an extraction, before a training, with a prediction."""


@dataclass(frozen=True, slots=True)
class Bone:
    """A line between two joints, by their positions in a list of names. `part` is the finger, or `Arm`."""

    start: int
    end: int
    part: str


def hand_bones(joints: Sequence[str]) -> list[Bone]:
    """The bones between these joints: from forearm to wrist, and out along each finger.

    A joint that is missing is skipped: its neighbours are connected.
    """
    positions = {name: position for position, name in enumerate(joints)}
    bones: list[Bone] = []
    for side in HAND_SIDES:
        for part, chain in _chains(side).items():
            held = [positions[name] for name in chain if name in positions]
            bones += [Bone(start, end, part) for start, end in pairwise(held)]
    return bones


def _chains(side: str) -> dict[str, list[str]]:
    """Joints that follow each other, by the part of the hand."""
    hand = f"{side}Hand"
    chains = {finger: [hand, *(f"{side}{finger}Finger{part}" for part in FINGER_PARTS)] for finger in FINGERS}
    return {
        "Arm": [f"{side}Forearm", hand],
        **chains,
        "Thumb": [hand, *(f"{side}Thumb{part}" for part in THUMB_PARTS)],
    }


def choose_joints(wanted: str, labelled: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The joints to train on, of those that any of the `labelled` videos (their joint names) has.

    Sets (`auto`, `paper`, `keypoints`) keep what is there, in their own order. Raises StageError where
    nothing is left, or where a joint asked for by name is nowhere labelled.
    """
    held = tuple(dict.fromkeys(name for names in labelled for name in names))
    if wanted == "all":
        return _some(held, wanted, held)
    if wanted == "auto":
        return tuple(name for name in PAPER_JOINTS if name in held) or _some(held, wanted, held)
    if wanted in JOINT_SETS:
        return _some(tuple(name for name in JOINT_SETS[wanted] if name in held), wanted, held)
    names = tuple(name.strip() for name in wanted.split(","))
    if unknown := [name for name in names if name not in held]:
        raise StageError(f"--joints: no label has {unknown[0]!r}; there are {', '.join(held) or 'none'}")
    return tuple(dict.fromkeys(names))


def is_joint_set(wanted: str) -> bool:
    """True if a choice of joints is a set, which keeps what is there, and not a list of names."""
    return wanted in ("auto", "all", *JOINT_SETS)


def describe_joints(names: Sequence[str]) -> str:
    """Joints in a few words: whole hands by their side, the rest by name or number."""
    words, rest = [], list(names)
    for side in HAND_SIDES:
        hand = [name for name in rest if name.startswith(side) and name in PAPER_JOINTS]
        if f"{side}Hand" in hand and len(hand) >= len(KEYPOINTS) // len(HAND_SIDES):
            words.append(f"the {side} hand ({len(hand)} joints)")
            rest = [name for name in rest if name not in hand]
    if rest:
        more = f" and {len(rest) - MOST_NAMED} more" if len(rest) > MOST_NAMED else ""
        words.append(", ".join(rest[:MOST_NAMED]) + more)
    return ", ".join(words)


def _some(names: tuple[str, ...], wanted: str, held: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise StageError(f"--joints {wanted}: the labels have none of these; they have {list(held)[:8]}")
    return names
