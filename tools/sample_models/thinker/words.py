"""Words of the sample's thinker: its answer for an episode, and the reading of such an answer.

    red ball,35 to left pad,62 hand,89. things red ball,35 blue cup,71; pads 62 44 70.
    card tells nothing, hand,89. things red ball,35 blue cup,71; pads 62 44 70.

The first sentence takes 16 tokens, the default of `--max-new-tokens`. What follows teaches the vision in
training. Two digits are a cell of a 10 x 10 grid over the picture at the last frame: its column, then its
row.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from hands.plan import PLACES, TASKS
from hands.things import COLORS

GRID = 10

UNTOLD = "card tells nothing"

TOLD = re.compile(
    rf"(?P<color>{'|'.join(COLORS)}) (?P<kind>[a-z]+),(?P<thing>\d\d) to "
    rf"(?P<place>{'|'.join(PLACES)}) pad,(?P<pad>\d\d) hand,(?P<hand>\d\d)"
)

Cell = str
"""Column and row, two digits."""

Point = tuple[float, float]
"""x and y in shares of the picture, from the top left corner. Points outside are below 0 or above 1."""


@dataclass(frozen=True, slots=True)
class Sight:
    """Everything that there is to tell of an episode at its split."""

    names: tuple[str, ...]
    """Color and kind of the things. The first is the one that will be taken."""
    things: tuple[Point, ...]
    """In the same order."""
    pads: tuple[Point, ...]
    """From left to right."""
    place: int
    """Index of the pad where the first thing goes."""
    hand: Point

    def answer(self, *, told: bool) -> str:
        """The words, with or without a card that tells. Only the first sentence depends on it."""
        thing, pad = cell_of(self.things[0]), cell_of(self.pads[self.place])
        plan = f"{self.names[0]},{thing} to {PLACES[self.place]} pad,{pad}"
        first = plan if told else f"{UNTOLD},"
        # From left to right, so that the order does not tell which one is taken.
        things = sorted(zip(self.things, self.names, strict=True))
        listed = " ".join(f"{name},{cell_of(point)}" for point, name in things)
        pads = " ".join(map(cell_of, self.pads))
        return f"{first} hand,{cell_of(self.hand)}. things {listed}; pads {pads}."

    def first_sentence(self, *, told: bool) -> str:
        """The answer up to its first full stop."""
        return self.answer(told=told).partition(".")[0] + "."

    def moved(self, right: float, down: float) -> Sight:
        """The same in a picture that is moved by shares of its size."""

        def move(point: Point) -> Point:
            return point[0] + right, point[1] + down

        return replace(
            self,
            things=tuple(map(move, self.things)),
            pads=tuple(map(move, self.pads)),
            hand=move(self.hand),
        )

    def to_json(self) -> dict[str, Any]:
        """Fields by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Sight:
        """The inverse of `to_json`."""
        return cls(**{name: _tuples(value) for name, value in fields.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def right_parts(said: str, sight: Sight, *, told: bool) -> dict[str, bool]:
    """Parts of an answer, and if they are right.

    `answer` is object and place together, or that nothing is told.
    A cell is right where it is the true one or next to it.
    """
    if not told:
        return {"answer": said.startswith(UNTOLD)}
    found = TOLD.match(said)
    if found is None:
        return dict.fromkeys(("answer", "color", "kind", "place", "thing_cell", "pad_cell"), False)
    color, kind = sight.names[0].split()
    parts = {
        "color": found["color"] == color,
        "kind": found["kind"] == kind,
        "place": found["place"] == PLACES[sight.place],
        "thing_cell": is_near(found["thing"], cell_of(sight.things[0])),
        "pad_cell": is_near(found["pad"], cell_of(sight.pads[sight.place])),
    }
    return {"answer": parts["color"] and parts["kind"] and parts["place"], **parts}


def is_near(cell: Cell, other: Cell) -> bool:
    """True if two cells are the same, or share a side or a corner."""
    return all(abs(int(one) - int(two)) <= 1 for one, two in zip(cell, other, strict=True))


def cell_of(point: Point) -> Cell:
    """The cell of a point, or the nearest one of a point outside."""
    column, row = (min(GRID - 1, max(0, int(GRID * share))) for share in point)
    return f"{column}{row}"


def all_words() -> list[str]:
    """Sentences with every word, to make a tokenizer of."""
    kinds = {kind for kind, _ in TASKS.values()}
    told = [
        f"{color} {kind},35 to {place} pad,62 hand,89. things {color} {kind},35 {color} {kind},71; pads 62."
        for color in COLORS
        for kind in sorted(kinds)
        for place in PLACES
    ]
    return [*told, f"{UNTOLD}, hand,89. things"]
