"""Gates before any comparison: what the pyramid reads tells what the cue told, and only where it was told.

A read-out is linear and fitted on other episodes than it is scored on.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cue_probe

from evidence.plan import Plan
from evidence.tasks import TASKS
from thinkjepa.cache import FeatureCache, ThinkJepaError
from thinkjepa.pipeline.sample.tables import CLASSES_FILE
from thinkjepa.stages.train.data.features import choose_features

READ = ("streams", "slots")
"""The arrays that are read out, by their names in the probe."""

TOLD_SHARE, CHANCE_SHARE = 0.9, 0.1
"""Read right at least under `cue`, and at most above the commonest class under `no-cue`."""


class GateError(ThinkJepaError):
    """A gate failed: no comparison would mean anything."""


def read_outs(plan: Plan, project: Path, *, seed: int = 0) -> dict[str, Any]:
    """Share of clips of which each class is read right, by condition and array, and whether it passes."""
    found: dict[str, Any] = {}
    told = TASKS[plan.task].told
    for condition in plan.conditions:
        rows = _read_classes(project / "videos" / condition / CLASSES_FILE)
        cache = FeatureCache.open(project / "features" / condition)
        for name in READ:
            features = choose_features(cache, cue_probe.READINGS[name])
            clips = list(features.clips)
            states = cue_probe.what_is_read(name, features, [clip.clip_id for clip in clips])
            for target in told:
                classes = [rows[clip.video][target] for clip in clips]
                found.setdefault(condition, {})[f"{name}_{target}"] = cue_probe.read_out(
                    states, classes, seed=seed
                )
                found[condition][f"majority_{target}"] = max(map(classes.count, classes)) / len(classes)
    return {**found, "passed": passed(found, told)}


def passed(found: dict[str, Any], targets: Sequence[str]) -> bool:
    """Return True if an array tells what a cue told, and none does where the cue was neutral."""
    for target in targets:
        told = max(found["cue"][f"{name}_{target}"] for name in READ)
        guessed = max(found["no-cue"][f"{name}_{target}"] for name in READ)
        if told < TOLD_SHARE or guessed > found["no-cue"][f"majority_{target}"] + CHANCE_SHARE:
            return False
    return True


def _read_classes(path: Path) -> dict[str, dict[str, str]]:
    """Rows of a table of classes, by video."""
    with path.open(encoding="utf-8", newline="") as file:
        return {row["video"]: row for row in csv.DictReader(file)}
