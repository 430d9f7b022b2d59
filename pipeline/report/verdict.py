"""Numbers of a comparison in words: means with intervals, and what a difference supports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from thinkjepa.stages.evaluate.compared.entries import MOST_GROUPS_BY_PAIRS, question_pair
from thinkjepa.stages.evaluate.metrics import METRICS

Figure = Mapping[str, float | None]
"""Mean, low and high end of its interval."""


def is_main(entry: Mapping[str, Any]) -> bool:
    """True if an entry is a model, or a baseline that needs none."""
    return entry["method"] == "model" or entry["group"] is None


def figure_text(figure: Figure, text: Callable[[float], str]) -> str:
    """`61.2 [58.0, 64.0]`, each number by `text`; without the interval where it is unknown."""
    mean, low, high = figure["mean"], figure["low"], figure["high"]
    assert mean is not None, "scores that no clip has are left out"
    return text(mean) if low is None or high is None else f"{text(mean)} [{text(low)}, {text(high)}]"


FEWEST_GROUPS, FEWEST_SEEDS = 10, 3
"""With fewer an interval is drawn from too little to call a difference by it."""

ENDS = ("mean", "low", "high")

FEW, MORE_DECIMALS = 10, 2
"""Amounts below FEW units of the last decimal get two decimals more."""

EQUAL_SHARE = 1e-6
"""A smaller difference, as a share of the other method's score, is one of rounding."""

ONE_VIDEO = "one video is too few to tell"

Outcome = Literal["better", "worse", "no difference", "open"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Numbers of groups of an interval, and of seeds of the method with fewer of them."""

    num_groups: int
    num_seeds: int

    @property
    def missing(self) -> str:
        """The reason why it is too little for a verdict, else empty."""
        if self.num_groups < FEWEST_GROUPS:
            return f"{_count(self.num_groups, 'group')} too few to tell"
        if self.num_seeds < FEWEST_SEEDS:
            return f"{_count(self.num_seeds, 'seed')} too few to tell"
        return ""


def outcome(metric: str, figure: Figure, evidence: Evidence) -> Outcome:
    """The meaning of a difference a - b for a. `open`: no interval, or one drawn from too little."""
    mean, low, high = figure["mean"], figure["low"], figure["high"]
    if mean is None or low is None or high is None:
        return "open"
    if low <= 0 <= high or _equal_below(metric, mean, None):
        return "no difference"
    if evidence.missing:
        return "open"
    return "better" if METRICS[metric].is_better(mean) else "worse"


def verdict(
    a: str,
    b: str,
    metric: str,
    figure: Figure,
    evidence: Evidence,
    *,
    of_b: float | None = None,
    by_seed: Sequence[float] = (),
) -> str:
    """A sentence on the difference a - b.

    `of_b` is b's own mean, `by_seed` the difference of each seed of a. A difference that rounds to nothing is
    called equality, and one whose interval holds 0 is none. One that is drawn from too little is described,
    and said to be open. Without an interval nothing is known of a difference that no table would show.
    """
    mean = figure["mean"]
    assert mean is not None, "a difference that no clip has is not in the table"
    is_alone = figure["low"] is None
    if limit := _equal_below(metric, mean, of_b, more_decimals=0 if is_alone else MORE_DECIMALS):
        line = f"{a} is equal to {b} (difference below {limit})"
        return f"{line}; {evidence.missing or ONE_VIDEO}" if is_alone else line
    found = outcome(metric, figure, evidence)
    if found == "no difference":
        return f"no difference between {a} and {b}: {_amount(metric, figure, 1, of_b, signed=True)}"
    better = METRICS[metric].is_better(mean)
    amount = _amount(metric, figure, 1 if mean > 0 else -1, of_b)
    seeds = _seeds(metric, by_seed, better=better)
    if found == "open":
        missing = evidence.missing or ONE_VIDEO
        return f"{a} is {'better' if better else 'worse'} than {b} by {amount}{seeds}; {missing}"
    return f"{a} {'beats' if better else 'loses to'} {b} by {amount}{seeds}"


def baseline_verdicts(comparison: Mapping[str, Any], metric: str) -> list[str]:
    """A line for each model and the best method without training, which is the hardest one to beat.

    Of many models only the first in the ranking has a line of its own. The others are counted: how many beat,
    and lose to, this method.
    """
    best = _best_baseline(comparison, metric)
    chosen = [item for item in comparison["differences"] if metric in item["metrics"] and item["b"] == best]
    models = list(dict.fromkeys(item["a"] for item in chosen))
    if len(models) <= MOST_GROUPS_BY_PAIRS:
        return [_line(comparison, item, metric) for item in chosen]
    first = comparison["ranking"]["rows"][0]["name"] if comparison["ranking"] else models[0]
    lines = [_line(comparison, item, metric) for item in chosen if item["a"] == first]
    for name in dict.fromkeys(item["b"] for item in chosen):
        counts = Counter(
            outcome(metric, item["metrics"][metric], evidence_of(comparison, item))
            for item in chosen
            if item["b"] == name
        )
        lines.append(
            f"of {len(models)} settings {counts['better']} beat {name}, {counts['worse']} lose to it, "
            f"{counts['no difference']} do not differ from it, {counts['open']} have too little evidence"
        )
    return lines


def _best_baseline(comparison: Mapping[str, Any], metric: str) -> str | None:
    """The method without training of the best mean; None where there is none."""
    means = {
        entry["name"]: float(entry["metrics"][metric]["mean"])
        for entry in comparison["entries"]
        if metric in entry["metrics"] and entry["method"] in METRICS[metric].to_beat
    }
    choose = max if METRICS[metric].better_when_larger else min
    return choose(means, key=lambda name: means[name]) if means else None


def question_verdicts(comparison: Mapping[str, Any], metric: str) -> list[str]:
    """The line on the first model of either variant in `QUESTION`: whether guidance helps; empty without."""
    asked = question_of(comparison)
    return [
        _line(comparison, item, metric)
        for item in comparison["differences"]
        if (item["a"], item["b"]) == asked and metric in item["metrics"]
    ]


def question_of(comparison: Mapping[str, Any]) -> tuple[str, str] | None:
    """The names of the first model of either variant in `QUESTION`, no control; None where one has none."""
    variants = {group["name"]: group["variant"] for group in comparison["groups"] if not group["control"]}
    ranking = comparison["ranking"]
    order = [row["name"] for row in ranking["rows"]] if ranking else list(variants)
    return question_pair({name: variants[name] for name in order if name in variants})


def model_verdicts(comparison: Mapping[str, Any], metric: str, *, of: str | None = None) -> list[str]:
    """A line for each two models, and for each model and its own shuffled guidance; all, or `of` one."""
    methods = _methods(comparison)
    return [
        _line(comparison, item, metric)
        for item in comparison["differences"]
        if metric in item["metrics"]
        and methods[item["b"]] in ("model", "shuffled_guidance")
        and (of is None or of in (item["a"], item["b"]))
    ]


def readout_lines(comparison: Mapping[str, Any], metric: str, *, of: str | None = None) -> list[str]:
    """A line for each model whose head also read the true future: the part of the error that is the head's.

    All, or `of` one. No verdict: the head that sees the future is a limit, not a competitor.
    """
    scores = {
        (entry["group"], entry["method"]): entry["metrics"][metric]["mean"]
        for entry in comparison["entries"]
        if metric in entry["metrics"]
    }
    unit = METRICS[metric].unit
    lines = []
    for group in (name for name, method in scores if method == "readout_ceiling" and of in (None, name)):
        whole, head = (unit.amount(scores[group, method]) for method in ("model", "readout_ceiling"))
        lines.append(
            f"{METRICS[metric].heading()}: of {group}'s {whole} its head alone has {head}, on TRUE future "
            "latents, which no prediction sees"
        )
    return lines


def evidence_of(comparison: Mapping[str, Any], difference: Mapping[str, Any]) -> Evidence:
    """The evidence for a difference of a comparison."""
    seeds = [number for number in difference["num_seeds"] if number]
    return Evidence(comparison["num_groups"], min(seeds, default=0))


def _line(comparison: Mapping[str, Any], item: Mapping[str, Any], metric: str) -> str:
    scores = {entry["name"]: entry["metrics"] for entry in comparison["entries"]}
    line = verdict(
        item["a"],
        item["b"],
        metric,
        item["metrics"][metric],
        evidence_of(comparison, item),
        of_b=scores[item["b"]][metric]["mean"],
        by_seed=item["by_seed"].get(metric, ()),
    )
    return f"{METRICS[metric].heading()}: {line}"


def _methods(comparison: Mapping[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["method"] for entry in comparison["entries"]}


def _equal_below(
    metric: str, difference: float, of_b: float | None, *, more_decimals: int = MORE_DECIMALS
) -> str:
    """The limit below which a difference counts as none, where it is below one; else empty."""
    if of_b and abs(difference / of_b) < EQUAL_SHARE:
        return f"{100 * EQUAL_SHARE:.4f} %"
    unit = METRICS[metric].unit
    if not unit.rounds_to_zero(difference, more_decimals=more_decimals):
        return ""
    decimals = unit.decimals + more_decimals
    return f"{10**-decimals:.{decimals}f}{unit.suffix}"


def _amount(metric: str, figure: Figure, sign: int, of_b: float | None, *, signed: bool = False) -> str:
    """`12.1 mm [9.0, 15.2] (18 %)`, times `sign`; the interval and the share where they are known."""
    unit = METRICS[metric].unit
    mean, *ends = [sign * value for value in map(figure.get, ENDS) if value is not None]
    few = max(abs(unit.scale * value) for value in (mean, *ends)) < FEW * 10**-unit.decimals
    write = unit.signed if signed else unit.number
    shown = [write(value, more_decimals=MORE_DECIMALS * few) for value in (mean, *sorted(ends))]
    text = f"{shown[0]}{unit.suffix}"
    if ends:
        text += f" [{shown[1]}, {shown[2]}]"
    share = "" if of_b is None else unit.share(mean, of_b)
    return f"{text} ({share})" if share else text


def _seeds(metric: str, by_seed: Sequence[float], *, better: bool) -> str:
    """The number of seeds in which the difference has this direction."""
    if not by_seed:
        return ""
    agreeing = sum(value != 0 and METRICS[metric].is_better(value) == better for value in by_seed)
    return f", in {agreeing} of {len(by_seed)} seed{'' if len(by_seed) == 1 else 's'}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun} is" if number == 1 else f"{number} {noun}s are"
