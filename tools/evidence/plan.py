"""Arms, conditions and sizes of the evidence, as `params.yaml` of its project has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from hands.plan import Condition, Pairs

from thinkjepa.cache import ThinkJepaError
from thinkjepa.stages.settings import SettingsError
from thinkjepa.stages.train.settings import TrainSettings


class PlanError(ThinkJepaError):
    """The evidence's params.yaml asks for what there is not."""


@dataclass(frozen=True, slots=True)
class Part:
    """The episodes of one partition."""

    episodes: int
    seed: int
    pairs: Pairs


@dataclass(frozen=True, slots=True)
class Cache:
    """A cache of features: of which condition's videos, by which thinker, with which flags of extract."""

    condition: Condition
    thinker: str = "trained"
    flags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """One run: an arm or an ablation, under a condition, with a seed."""

    condition: Condition
    arm: str
    seed: int
    cache: str
    settings: TrainSettings

    @property
    def name(self) -> str:
        """Its folder under that of all runs."""
        return f"{self.condition}/{self.arm}-{self.seed}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All of `params.yaml`, checked."""

    parts: Mapping[str, Part]
    conditions: Mapping[Condition, tuple[str, ...]]
    """Condition -> the arms that are trained under it."""
    seeds: tuple[int, ...]
    ablation_seeds: tuple[int, ...]
    extract: Mapping[str, Any]
    """Flags of `thinkjepa-cache extract` that all caches share."""
    caches: Mapping[str, Cache]
    """Caches besides the one of each condition, which has its name."""
    train: Mapping[str, Any]
    """Settings that all runs share."""
    arms: Mapping[str, Mapping[str, Any]]
    ablations: Mapping[str, Mapping[str, Any]]
    """Runs under `cue` whose settings differ from those of `thinkjepa`."""

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Raises PlanError for an unknown key, arm or setting."""
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        names = {item.name for item in fields(cls)}
        if apart := names ^ set(values):
            raise PlanError(f"{path}: key {sorted(apart)[0]!r} is missing or unknown")
        plan = cls(
            parts={name: Part(**part) for name, part in values["parts"].items()},
            conditions={name: tuple(arms) for name, arms in values["conditions"].items()},
            seeds=tuple(values["seeds"]),
            ablation_seeds=tuple(values["ablation_seeds"]),
            extract=values["extract"],
            caches={name: Cache(name) for name in values["conditions"]}
            | {name: Cache(**cache) for name, cache in values["caches"].items()},
            train=values["train"],
            arms=values["arms"],
            ablations=values["ablations"],
        )
        for condition, arms in plan.conditions.items():
            if unknown := [arm for arm in arms if arm not in plan.arms]:
                raise PlanError(f"{path}: condition {condition} names the unknown arm {unknown[0]!r}")
        list(plan.jobs())
        return plan

    def jobs(self) -> Iterator[Job]:
        """All runs, seed by seed, so that what is there after an interruption can be compared."""
        for seed in self.seeds:
            for condition, arms in self.conditions.items():
                for arm in arms:
                    yield self._job(condition, arm, seed, self.arms[arm])
        for seed in self.ablation_seeds:
            for name, changes in self.ablations.items():
                yield self._job("cue", name, seed, {**self.arms["thinkjepa"], **changes})

    def _job(self, condition: Condition, arm: str, seed: int, changes: Mapping[str, Any]) -> Job:
        settings = {**self.train, **changes, "seed": seed}
        cache = settings.pop("cache", condition)
        if cache not in self.caches:
            raise PlanError(f"{arm} reads the cache {cache!r}: caches are {', '.join(self.caches)}")
        try:
            return Job(condition, arm, seed, cache, TrainSettings(**settings))
        except SettingsError as error:
            raise PlanError(f"settings of {arm}: {error}") from error
