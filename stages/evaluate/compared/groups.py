"""Evaluated runs, grouped by everything but their seed, on the clips that all of them share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, get_args

import numpy as np

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.scores import Score
from thinkjepa.stages.evaluate.table import ClipTable
from thinkjepa.stages.intervals import Floats
from thinkjepa.stages.json_files import json_bytes
from thinkjepa.stages.train.idle import idle_settings
from thinkjepa.stages.train.model.config import WITHOUT_LATENTS, Variant
from thinkjepa.stages.train.settings import TrainSettings

NOT_PART_OF_A_GROUP = (
    "variant",
    "seed",
    "device",
    "clips_per_forward",
    "attention_kernel",
    "preset",
    "save_every_s",
    "tracker",
)
"""Settings of an execution, not of a result; the variant has a field of its own."""

TRAINED_ON = {
    "train": "training clips",
    "validation": "validation clips",
    "test": "test clips",
    "labels": "hand labels",
}
"""Data of a training that make runs comparable, in words."""

SAME_TIME_S = 1e-3

OF_THE_LATENTS = ("latent_pool", "normalise_targets")
"""Settings that change the predicted latents: their size or scale."""


@dataclass(frozen=True, slots=True)
class EvaluatedRun:
    """The evaluation of one run, and its name in reports."""

    name: str
    table: ClipTable
    validation: Mapping[str, float] = field(default_factory=dict)
    """Figures of the validation clips in `metrics.json`, by name."""
    trained_on: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Count and digest of each of `TRAINED_ON`."""

    @property
    def variant(self) -> str:
        return str(self.table.record["variant"])

    @property
    def seed(self) -> int:
        return int(self.table.record["seed"])

    @property
    def description(self) -> dict[str, Any]:
        """All that runs of one group have in common, without the variant.

        Settings that do nothing in the run are left out. One that an older version did not have is None.
        """
        record = self.table.record
        recorded = {item.name: record["settings"].get(item.name) for item in fields(TrainSettings)}
        left_out = idle_settings(record["settings"]).union(NOT_PART_OF_A_GROUP)
        settings = {name: value for name, value in recorded.items() if name not in left_out}
        sets = {kind: item["name"] for kind, item in record["feature_sets"].items() if item}
        return {**settings, "joints": ",".join(record["joints"]), **sets}


@dataclass(frozen=True, slots=True)
class RunGroup:
    """Runs that differ in their seed only, sorted by it."""

    name: str
    runs: tuple[EvaluatedRun, ...]

    @property
    def variant(self) -> str:
        return self.runs[0].variant

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    @property
    def is_control(self) -> bool:
        """True if other states than the thinker's of the clip guided its runs."""
        return self.runs[0].description.get("guidance_source") not in (None, "own")

    def by_seed(self, score: Score) -> Floats | None:
        """Values `(seed, clip)`, NaN where a clip has none; None unless all runs have this score."""
        found = [run.table.scores.get(score) for run in self.runs]
        return None if any(values is None for values in found) else np.stack(found)  # type: ignore[arg-type]


def group_runs(runs: Sequence[EvaluatedRun]) -> list[RunGroup]:
    """Groups in the order of variants, each named by its variant and the settings in which it differs.

    Raises StageError where a group has a seed twice, or runs that were trained on different data.
    """
    members: dict[bytes, list[EvaluatedRun]] = {}
    for run in runs:
        members.setdefault(json_bytes([run.variant, run.description]), []).append(run)
    found = [tuple(sorted(group, key=lambda run: run.seed)) for group in members.values()]
    for group in found:
        _check_seeds(group)
        _check_same_training(group)
    names = _names([group[0] for group in found])
    groups = [RunGroup(name, group) for name, group in zip(names, found, strict=True)]
    return sorted(groups, key=lambda group: (get_args(Variant).index(group.variant), group.name))


def group_records(groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    """Name, variant, seeds and runs of each group, and whether it is a control of guidance."""
    return [
        {
            "name": group.name,
            "variant": group.variant,
            "control": group.is_control,
            "seeds": group.seeds,
            "runs": [run.name for run in group.runs],
        }
        for group in groups
    ]


def on_shared_clips(runs: Sequence[EvaluatedRun]) -> list[EvaluatedRun]:
    """The runs limited to the clips that all were evaluated on, sorted by id.

    Latent scores of runs whose latents are not in one space are left out: their differences mean nothing.
    Raises StageError where runs have another split, future or joints, where labels changed between the
    evaluations, or where nothing is left to compare.
    """
    first = runs[0]
    for run in runs[1:]:
        _check_same_split(first, run)
    shared = sorted(set.intersection(*(set(run.table.clip_ids) for run in runs)))
    if not shared:
        raise StageError(f"runs {_list(runs)} have no {first.table.record['split']} clip in common")
    limited = [replace(run, table=run.table.only(shared)) for run in runs]
    _check_same_future(limited)
    _check_same_labels([run for run in limited if run.table.record["joints"]])
    if one_latent_space(limited):
        return limited
    if not all(run.table.record["joints"] for run in limited):
        raise StageError(
            f"the latents of runs {_list(runs)} are not in one space (another encoder, --latent-pool or "
            "--normalise-targets), and not all of them predict hands: there is nothing to compare"
        )
    return [replace(run, table=run.table.without("latent")) for run in limited]


def one_latent_space(runs: Sequence[EvaluatedRun]) -> bool:
    """True if latent distances of these runs, of those that have any, are between the same things."""
    spaces = [
        (record["feature_sets"]["encoder"], [record["settings"].get(name) for name in OF_THE_LATENTS])
        for record in (run.table.record for run in runs if run.variant not in WITHOUT_LATENTS)
    ]
    return all(space == spaces[0] for space in spaces)


def varied_settings(groups: Sequence[RunGroup]) -> dict[str, list[Any]]:
    """Settings in which groups differ, with their values, but for variant and seed.

    A run that does not read a setting, or no thinker, differs in its variant: it has no value there.
    """
    return _varied([group.runs[0].description for group in groups])


def _varied(descriptions: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The names, sorted, with several values in the descriptions that have them, with these values."""
    found = {}
    for name in differing(descriptions):
        own = {json_bytes(item[name]): item[name] for item in descriptions if name in item}
        if len(own) > 1:
            found[name] = list(own.values())
    return found


def differing(descriptions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names, sorted, of the values that are not the same in all of them."""
    names = set().union(*descriptions)
    first = descriptions[0]
    return sorted(name for name in names if any(other.get(name) != first.get(name) for other in descriptions))


def _names(first_runs: Sequence[EvaluatedRun]) -> list[str]:
    """A name for each group, from one of its runs: its variant, with the differences within the variant.

    A setting that only some runs of the variant read is named where nothing else tells them apart.
    """
    peers = {
        run.variant: [o.description for o in first_runs if o.variant == run.variant] for run in first_runs
    }
    names = [_name(run, list(_varied(peers[run.variant]))) for run in first_runs]
    return [
        _name(run, differing(peers[run.variant])) if names.count(name) > 1 else name
        for run, name in zip(first_runs, names, strict=True)
    ]


def _name(run: EvaluatedRun, settings: Sequence[str]) -> str:
    own = [name for name in settings if run.description.get(name) is not None]
    details = ", ".join(f"{name} {run.description[name]}" for name in own)
    return f"{run.variant} ({details})" if details else run.variant


def different_data(groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    """The data that not all groups were trained on alike, with each group's count and digest.

    Labels are those of all clips, also where a share of the training groups is trained on.
    """
    found = []
    for name in TRAINED_ON:
        of_group = {group.name: dict(group.runs[0].trained_on.get(name, {})) for group in groups}
        if len({value.get("sha256") for value in of_group.values()}) > 1:
            found.append({"data": name, "groups": of_group})
    return found


def _check_same_training(runs: Sequence[EvaluatedRun]) -> None:
    for one, other in pairwise(runs):
        apart = [
            f"{words} ({first['count']} and {second['count']})"
            for name, words in TRAINED_ON.items()
            if (first := one.trained_on.get(name)) != (second := other.trained_on.get(name))
            and first is not None
            and second is not None
        ]
        if apart:
            raise StageError(
                f"runs {one.name!r} and {other.name!r} have the same settings, but were trained on different "
                f"{', '.join(apart)}, so they are no seeds of one another: train them on the same clips, or "
                "leave one of them out"
            )


def _check_seeds(runs: Sequence[EvaluatedRun]) -> None:
    for one, other in pairwise(runs):
        if one.seed == other.seed:
            raise StageError(
                f"runs {one.name!r} and {other.name!r} have the same settings and seed {one.seed}: "
                "leave one of them out"
            )


def _check_same_split(one: EvaluatedRun, other: EvaluatedRun) -> None:
    for name, what in (("split", "evaluated on"), ("division", "divided by")):
        first, second = one.table.record[name], other.table.record[name]
        if first != second:
            raise StageError(
                f"runs {one.name!r} and {other.name!r} cannot be compared, their clips are not the same: "
                f"{what} {_short(first)} and {_short(second)}; train them with the same --group-by, "
                "fractions and --split-seed, and evaluate the same --split"
            )


def _check_same_future(runs: Sequence[EvaluatedRun]) -> None:
    """Ids of clips name video and split: frames of another rate or number would go unnoticed."""
    for one, other in pairwise(runs):
        first, second = (run.table.lists("horizon_s") for run in (one, other))
        if first.shape != second.shape or not np.allclose(first, second, atol=SAME_TIME_S):
            raise StageError(
                f"runs {one.name!r} and {other.name!r} predict other moments of the same clips (another "
                "--dense-fps or --future-frames): compare runs on features of the same frames"
            )


def _check_same_labels(runs: Sequence[EvaluatedRun]) -> None:
    for one, other in pairwise(runs):
        joints, others = (run.table.record["joints"] for run in (one, other))
        if joints != others:
            raise StageError(
                f"runs {one.name!r} and {other.name!r} predict {len(joints)} and {len(others)} joints that "
                "are not the same: compare runs with the same --joints"
            )
        least = [run.table.record["settings"].get("min_confidence", 0.0) for run in (one, other)]
        if least[0] != least[1]:
            raise StageError(
                f"runs {one.name!r} and {other.name!r} count joints of other confidences (--min-confidence "
                f"{least[0]:g} and {least[1]:g}): compare runs with the same"
            )
        counted = (run.table.numbers("counted_joint_frames") for run in (one, other))
        if not np.equal(*counted).all():
            raise StageError(
                f"labels changed between the evaluations of {one.name!r} and {other.name!r}: evaluate both "
                "again (--again)"
            )


def _short(value: object) -> str:
    if isinstance(value, dict):
        rule = {**value["rule"], "group_by": value["grouping"]}
        return ", ".join(f"{name} {setting}" for name, setting in sorted(rule.items()))
    return str(value)


def _list(runs: Sequence[EvaluatedRun]) -> str:
    return ", ".join(repr(run.name) for run in runs)
