"""Sources of the states that guide a run: the thinker's own, or a control in their place.

    own       the clip's own states
    shuffled  another clip's: no information about the clip
    none      zeros, a single token of them for cross-attention
    history   the encoder's features of the thinker's own frames: equal information, no language model
    oracle    the clip's classes in columns of a table, their one-hots side by side in the first dims of every
              level and stream

Partners of `shuffled` are a derangement within training, validation and test clips each, drawn by the seed
of the run and fixed from then on, in evaluation, too. A clip that the run does not know, as in a prediction
for a new video, has a training clip for a partner, by a hash of its id, and no class of an `oracle`. An
unknown class of a column is zeros in its dims.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from thinkjepa.stages.data.partition import SplitName
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.model.config import SourceKind

ORACLE_FILE = "oracle.json"
"""File of a run with the classes of its clips."""


@dataclass(frozen=True, slots=True)
class OracleColumn:
    """A column of a table, as an `oracle` knows it of clips."""

    column: str
    classes: tuple[str, ...]
    """Values of the column among training clips, sorted."""
    class_of: Mapping[str, int]
    """Index of a clip's class, where it is known."""

    def to_json(self) -> dict[str, Any]:
        return {"column": self.column, "classes": list(self.classes), "class_of": dict(self.class_of)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> OracleColumn:
        return cls(record["column"], tuple(record["classes"]), dict(record["class_of"]))

    def describe(self, clip_ids: Mapping[SplitName, Sequence[str]]) -> str:
        """The column in words, with the clips of each split that it knows nothing of."""
        unknown = {name: sum(item not in self.class_of for item in ids) for name, ids in clip_ids.items()}
        counts = ", ".join(f"{number} {name}" for name, number in unknown.items())
        return f"{len(self.classes)} classes of {self.column}; unknown of {counts} clips"


@dataclass(frozen=True, slots=True)
class GuidanceSource:
    """The source of a run's states, and all that it needs to know of clips."""

    kind: SourceKind = "own"
    partners: Mapping[str, str] = field(default_factory=dict)
    """Of `shuffled`: the clip whose states a clip is given."""
    strangers: tuple[str, ...] = ()
    """Of `shuffled`: training clips, one of which stands in for the partner of an unknown clip."""
    columns: tuple[OracleColumn, ...] = ()
    """Of `oracle`: what it knows of clips, in the order of their dims."""

    @property
    def tells_of_clips(self) -> bool:
        """True where states say something of their clip. Without it, another clip's are no control."""
        return self.kind in ("own", "history", "oracle")

    def read_from(self, clip_ids: Sequence[str]) -> Sequence[str]:
        """The clips whose stored states these clips are given."""
        return clip_ids if self.kind != "shuffled" else [self._partner(clip_id) for clip_id in clip_ids]

    def made(self, clip_ids: Sequence[str], *, dim: int) -> Tensor | None:
        """States `(clip, dim)` that are read of no cache; None where they are."""
        if self.kind in ("own", "shuffled", "history"):
            return None
        states_BD = torch.zeros(len(clip_ids), dim)
        first = 0
        for column in self.columns:
            for index, clip_id in enumerate(clip_ids):
                if (number := column.class_of.get(clip_id)) is not None:
                    states_BD[index, first + number] = 1.0
            first += len(column.classes)
        return states_BD

    def count_made(self, clip_ids: Sequence[str]) -> Tensor:
        """Tokens of each clip that `made` stands for `(clip,)`: one, or none where no class is known."""
        return torch.tensor([self.kind == "none" or self.knows(clip_id) for clip_id in clip_ids]).long()

    def knows(self, clip_id: str) -> bool:
        """True where an `oracle` has a class of the clip in any column."""
        return any(clip_id in column.class_of for column in self.columns)

    def _partner(self, clip_id: str) -> str:
        if clip_id in self.partners:
            return self.partners[clip_id]
        number = int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:8], "big")
        return self.strangers[number % len(self.strangers)]

    def describe(self, clip_ids: Mapping[SplitName, Sequence[str]]) -> str:
        """The source in words, with the clips of each split that it knows nothing of; empty for `own`."""
        if self.kind == "shuffled":
            return "shuffled: each clip is given the states of another clip of its split"
        if self.kind == "none":
            return "none: zeros instead of the thinker's states"
        if self.kind == "history":
            return "history: encoder features of the thinker's frames instead of its states"
        if self.kind == "own":
            return ""
        return "oracle: " + ", and ".join(column.describe(clip_ids) for column in self.columns)

    def to_json(self) -> dict[str, Any]:
        """Classes of an `oracle`, as RUN/oracle.json has them."""
        return {"columns": [column.to_json() for column in self.columns]}

    @classmethod
    def of_oracle(cls, record: Mapping[str, Any]) -> GuidanceSource:
        """The oracle of a record of `to_json`. Earlier versions wrote one column, by itself."""
        return cls("oracle", columns=tuple(map(OracleColumn.from_json, record.get("columns", [record]))))


def shuffled_source(ids: Mapping[SplitName, Sequence[str]], *, seed: int) -> GuidanceSource:
    """Partners for the clips of each split. Raises StageError for a split of a single video."""
    partners: dict[str, str] = {}
    for name, own in ids.items():
        if len({video_of(clip_id) for clip_id in own}) < 2:
            raise StageError(
                f"--guidance-source shuffled: the {name} clips are of one video, so that none can "
                "have another's states: add videos, or use --guidance-source none"
            )
        partners |= derangement(own, seed=seed)
    return GuidanceSource("shuffled", partners=partners, strangers=tuple(sorted(ids["train"])))


def derangement(clip_ids: Iterable[str], *, seed: int) -> dict[str, str]:
    """Another clip for each clip, of another video wherever no video has more than half of the clips.

    Clips are in order by video, videos by a hash of the seed. Each clip gets the one that follows it at the
    distance of the largest video's number of clips, so that every clip is the partner of exactly one. Empty
    for a single clip.
    """

    def drawn(name: str) -> str:
        return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()

    ordered = sorted(clip_ids, key=lambda clip_id: (drawn(video_of(clip_id)), drawn(clip_id)))
    if len(ordered) < 2:
        return {}
    most_clips = max(Counter(map(video_of, ordered)).values())
    shift = min(most_clips, len(ordered) - 1)
    return dict(zip(ordered, ordered[shift:] + ordered[:shift], strict=True))


def video_of(clip_id: str) -> str:
    """The id of a clip's video."""
    return clip_id.rpartition("@")[0]


def oracle_source(
    values: Mapping[str, Mapping[str, str]], *, train_ids: Sequence[str], dim: int
) -> GuidanceSource:
    """One-hot classes of clips, from the values by clip of each column of a table.

    Classes are those of the training clips. Raises StageError where none of these has a value of a column,
    or the columns have more classes in all than `dim`.
    """
    columns = tuple(_oracle_column(name, own, train_ids) for name, own in values.items())
    counts = [len(column.classes) for column in columns]
    if sum(counts) > dim:
        found = " + ".join(f"{count} of {name}" for count, name in zip(counts, values, strict=True))
        raise StageError(
            f"--guidance-source oracle:{','.join(values)}: the training clips have {sum(counts)} classes "
            f"({found}), more than the {dim} dims of a state: name columns with fewer values"
        )
    return GuidanceSource("oracle", columns=columns)


def _oracle_column(name: str, values: Mapping[str, str], train_ids: Sequence[str]) -> OracleColumn:
    classes = tuple(sorted({values[clip_id] for clip_id in train_ids if clip_id in values}))
    if not classes:
        raise StageError(
            f"--guidance-source oracle:{name}: no training clip has a value: check --oracle-table and the "
            "column"
        )
    number = {value: index for index, value in enumerate(classes)}
    class_of = {clip_id: number[value] for clip_id, value in values.items() if value in number}
    return OracleColumn(name, classes, class_of)
