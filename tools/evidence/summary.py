"""All runs of the evidence in one table with 95 % intervals, and the differences that answer its question.

    {condition: {arm: {metric: {mean, low, high, seeds}}}}
    {difference_in_differences: {metric: {mean, low, high}}}
    {differences: {condition: {arm: {metric: {mean, low, high}}}}}   thinkjepa minus the arm, paired

Intervals are those of the project's own comparisons: over groups, which are episodes here, seeds crossed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from evidence.measure import FILE
from evidence.plan import Plan
from thinkjepa.cache import ThinkJepaError
from thinkjepa.stages.intervals import Clusters, Figure, Parts

Floats = npt.NDArray[np.float64]

SLOPE = "slope_m_per_s"

BASELINES = ("constant_pose", "constant_velocity", "ridge")

GUIDED, UNGUIDED = "thinkjepa", "jepa"


class SummaryError(ThinkJepaError):
    """Runs that the summary needs are missing or were measured on other clips."""


class Measured:
    """The figures of all runs of one condition, by arm and seed, on the same clips."""

    def __init__(self, folder: Path, arms: Sequence[str], seeds: Sequence[int]) -> None:
        self.tables = {
            arm: [_read(folder / f"{arm}-{seed}" / FILE) for seed in seeds]
            for arm in arms
            if all((folder / f"{arm}-{seed}" / FILE).is_file() for seed in seeds)
        }
        if not self.tables:
            raise SummaryError(f"{folder} has no arm with all seeds: run the evidence first")
        self.first = next(iter(self.tables.values()))[0]
        for arm, tables in self.tables.items():
            if any(table["clip_id"] != self.first["clip_id"] for table in tables):
                raise SummaryError(f"runs of {arm} in {folder} were measured on other clips")
        self.clusters = Clusters(
            groups=self.first["group"].to_pylist(), videos=self.first["video"].to_pylist()
        )
        found = [name for name in self.first.column_names if name.startswith("model_")]
        self.metrics = [name.removeprefix("model_") for name in found if name != f"model_{SLOPE}"]
        """All but the slope."""
        self.unseen = np.array(self.first["unseen"].to_pylist())

    def values(self, arm: str, metric: str) -> Floats:
        """`(seed, clip)`; a baseline has one row."""
        if arm in BASELINES:
            return np.array([_column(self.first, f"{arm}_{metric}")])
        return np.array([_column(table, f"model_{metric}") for table in self.tables[arm]])

    def figure(self, parts: Parts) -> Figure:
        """Mean and interval of a score."""
        found = self.clusters.figure(parts)
        assert found is not None, "every clip has every figure"
        return found


def summarize(plan: Plan, project: Path) -> dict[str, Any]:
    """The record of all arms that are there with all their seeds."""
    result: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    measured = {
        condition: Measured(project / "runs" / condition, arms, plan.seeds)
        for condition, arms in plan.conditions.items()
    }
    for condition, found in measured.items():
        arms = [*found.tables, *BASELINES]
        result[condition] = {
            arm: {
                metric: {
                    **found.figure([found.values(arm, metric)]),
                    "seeds": len(found.values(arm, metric)),
                }
                for metric in (*found.metrics, SLOPE)
            }
            for arm in arms
        }
        if GUIDED in arms:
            differences[condition] = {
                arm: {
                    metric: found.figure([subtracted(found, arm, metric)])
                    for metric in (*found.metrics, SLOPE)
                }
                for arm in arms
                if arm != GUIDED
            }
    result["differences"] = differences
    if all(found.unseen.any() for found in measured.values()):
        result["unseen_pairs"] = {condition: _of_unseen(found) for condition, found in measured.items()}
    if all(
        {GUIDED, UNGUIDED} <= set(measured[name].tables) for name in ("cue", "no-cue") if name in measured
    ):
        result["difference_in_differences"] = {
            metric: in_differences(measured["cue"], measured["no-cue"], metric)
            for metric in measured["cue"].metrics
        }
    return result


def subtracted(found: Measured, arm: str, metric: str) -> Floats:
    """The guided arm's scores less another's `(seed, clip)`, paired by clip and by seed."""
    return found.values(GUIDED, metric) - found.values(arm, metric)


def in_differences(cue: Measured, neutral: Measured, metric: str) -> Figure:
    """(guided - unguided | cue) - (guided - unguided | no cue), paired by episode and seed."""
    if cue.first["group"] != neutral.first["group"]:
        raise SummaryError("runs under cue and no-cue were measured on other episodes")
    with_cue, without = (subtracted(found, UNGUIDED, metric) for found in (cue, neutral))
    return cue.figure([with_cue - without])


def _of_unseen(found: Measured) -> dict[str, dict[str, float]]:
    """Means over test clips whose pair of color and place training never showed, if there are any."""
    if not found.unseen.any():
        return {}
    return {
        arm: {metric: float(found.values(arm, metric)[:, found.unseen].mean()) for metric in found.metrics}
        for arm in (*found.tables, *BASELINES)
    }


def ablated(plan: Plan, project: Path) -> dict[str, Any]:
    """Figures of `thinkjepa` and its ablations under `cue`, on the ablations' seeds."""
    names = [GUIDED, UNGUIDED, *plan.ablations]
    found = Measured(project / "runs" / "cue", names, plan.ablation_seeds)
    return {
        name: {metric: found.figure([found.values(name, metric)]) for metric in found.metrics}
        for name in found.tables
    }


def _read(path: Path) -> pa.Table:
    """A run's figures, sorted by episode, which conditions share."""
    return pq.read_table(path).sort_by([("group", "ascending")])


def _column(table: pa.Table, name: str) -> Floats:
    return np.asarray(table[name].to_numpy(), np.float64)
