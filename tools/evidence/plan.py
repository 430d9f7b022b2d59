"""Arms, conditions and sizes of the evidence, as `params.yaml` of its project has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from hands.plan import Pairs

from thinkjepa.cache import ThinkJepaError
from thinkjepa.stages.settings import SettingsError
from thinkjepa.stages.train.settings import TrainSettings

TaskName = Literal["hands", "memory_maze"]

HORIZONS = (4, 8, 16, 32)
"""Latent steps up to which errors are measured, as far as the cached windows reach."""

TUBELET_FRAMES = 2
"""Frames of a latent step."""


class PlanError(ThinkJepaError):
    """The evidence's params.yaml asks for what there is not."""


@dataclass(frozen=True, slots=True)
class Part:
    """The episodes of one partition."""

    episodes: int
    seed: int
    pairs: Pairs = "all"
    """Of color and place, which only the hands have."""


@dataclass(frozen=True, slots=True)
class Cache:
    """A cache of features: of which condition's videos, by which thinker, with which flags of extract."""

    condition: str
    thinker: str = "trained"
    flags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """One run: an arm or an ablation, under a condition, with a seed."""

    condition: str
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

    task: TaskName
    parts: Mapping[str, Part]
    conditions: Mapping[str, tuple[str, ...]]
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
    gates_must_pass: bool
    """Whether nothing is trained where a gate fails; else the figures of gates are kept beside the others."""

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Raises PlanError for an unknown key, arm or setting."""
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        names = {item.name for item in fields(cls)}
        if apart := names ^ set(values):
            raise PlanError(f"{path}: key {sorted(apart)[0]!r} is missing or unknown")
        if values["task"] not in get_args(TaskName):
            raise PlanError(f"{path}: task {values['task']!r}: there are {', '.join(get_args(TaskName))}")
        plan = cls(
            task=values["task"],
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
            gates_must_pass=values["gates_must_pass"],
        )
        for condition, arms in plan.conditions.items():
            if unknown := [arm for arm in arms if arm not in plan.arms]:
                raise PlanError(f"{path}: condition {condition} names the unknown arm {unknown[0]!r}")
        list(plan.jobs())
        return plan

    @property
    def horizons(self) -> tuple[int, ...]:
        """Those of `HORIZONS` that the cached windows reach."""
        frames = self.extract["future_windows"] * self.extract["future_frames"]
        return tuple(steps for steps in HORIZONS if steps * TUBELET_FRAMES <= frames)

    def jobs(self) -> Iterator[Job]:
        """All runs, seed by seed, so that what is there after an interruption can be compared."""
        for seed in self.seeds:
            for condition, arms in self.conditions.items():
                for arm in arms:
                    yield self._job(condition, arm, seed, self.arms[arm])
        for seed in self.ablation_seeds:
            for name, changes in self.ablations.items():
                yield self._job("cue", name, seed, {**self.arms["thinkjepa"], **changes})

    def _job(self, condition: str, arm: str, seed: int, changes: Mapping[str, Any]) -> Job:
        settings = {**self.train, **changes, "seed": seed}
        cache = settings.pop("cache", condition)
        if cache not in self.caches:
            raise PlanError(f"{arm} reads the cache {cache!r}: caches are {', '.join(self.caches)}")
        try:
            return Job(condition, arm, seed, cache, TrainSettings(**settings))
        except SettingsError as error:
            raise PlanError(f"settings of {arm}: {error}") from error
