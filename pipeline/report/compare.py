"""Differences between two feature sets of the same clips, to check a backend, a precision or a quantization.

Clips are read one after another, so a cache of any size needs the memory of two clips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thinkjepa.cache import CacheError, FeatureCache, FeatureSet
from thinkjepa.pipeline.cli.console import counted
from thinkjepa.stages.progress import Progress

STATES = {"thinker": ("tokens",), "encoder": ("observed", "future"), "history": ("pooled",)}
"""Arrays compared by kind of set. The thinker's other arrays follow from its tokens."""


@dataclass(slots=True)
class Difference:
    """Distance of vectors of B from those of A, over all that were added."""

    vectors: int = 0
    max_abs: float = 0.0
    max_abs_of_a: float = 0.0
    cosine_sum: float = 0.0
    min_cosine: float = 1.0

    def add(self, a: Tensor, b: Tensor) -> None:
        """Add vectors `(..., dim)` of both sets, compared in float64."""
        a, b = (values.reshape(-1, values.shape[-1]).double() for values in (a, b))
        if not a.numel():
            return
        cosine = cosines(a, b)
        self.vectors += len(a)
        self.max_abs = _largest(self.max_abs, (a - b).abs().max())
        self.max_abs_of_a = _largest(self.max_abs_of_a, a.abs().max())
        self.cosine_sum += float(cosine.sum())
        self.min_cosine = -_largest(-self.min_cosine, -cosine.min())

    def to_json(self) -> dict[str, Any]:
        mean = self.cosine_sum / self.vectors if self.vectors else None
        return {
            "vectors": self.vectors,
            "max_abs_difference": self.max_abs,
            "max_abs_of_a": self.max_abs_of_a,
            "mean_cosine": mean,
            "min_cosine": self.min_cosine if self.vectors else None,
        }


@dataclass(slots=True)
class Agreement:
    """Count of positions with equal token ids. A position that only one side has counts as different."""

    tokens: int = 0
    equal: int = 0

    def add(self, a: Sequence[int], b: Sequence[int]) -> None:
        self.tokens += max(len(a), len(b))
        self.equal += sum(first == second for first, second in zip(a, b, strict=False))

    def to_json(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "equal": self.equal}


def compare_sets(path: Path, set_a: str, set_b: str, *, progress: Progress) -> dict[str, Any]:
    """Differences by layer (thinker) or array (encoder) over all clips that both sets hold.

    States are compared as long as the tokens before and at them are the same: after a token that differs
    they belong to another text. Raises CacheError where the sets cannot be compared.
    """
    cache = FeatureCache.open(path)
    a, b = cache.find_set(set_a), cache.find_set(set_b)
    _check_comparable(a, b)
    clip_ids = cache.select(a.name, b.name).clip_ids.to_pylist()
    if not clip_ids:
        raise CacheError(
            f"{a.name} and {b.name} have no clip in common: extract the same videos, chosen alike"
        )
    differences: dict[str, Difference] = {}
    agreements = {"prompt": Agreement(), "generated": Agreement()}
    same_tokens = 0
    reader = _PairReader(cache, a, b)
    progress.begin("comparing", total=len(clip_ids), unit="clips")
    for clip_id in clip_ids:
        comparable = None
        if a.kind == "thinker":
            comparable, same = _compare_tokens(cache, a, b, clip_id, agreements)
            same_tokens += same
        for name, states_a, states_b in reader.states(clip_id, comparable):
            differences.setdefault(name, Difference()).add(states_a, states_b)
        progress.advance(1)
    report: dict[str, Any] = {
        "a": a.name,
        "b": b.name,
        "kind": a.kind,
        "clips": len(clip_ids),
        "differing_origin": differing_origin(a, b),
        "states": {name: difference.to_json() for name, difference in differences.items()},
    }
    if a.kind == "thinker":
        report["clips_with_equal_tokens"] = same_tokens
        report["tokens"] = {name: agreement.to_json() for name, agreement in agreements.items()}
    return report


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each pair of rows; two zero vectors are alike, a zero vector and another are not."""
    product = (a * b).sum(dim=-1)
    lengths = a.norm(dim=-1) * b.norm(dim=-1)
    both_zero = (a == 0).all(dim=-1) & (b == 0).all(dim=-1)
    cosine = torch.where(lengths > 0, product / lengths.clamp_min(torch.finfo(lengths.dtype).tiny), 0.0)
    return torch.where(both_zero, 1.0, cosine).clamp(-1.0, 1.0)


def differing_origin(a: FeatureSet, b: FeatureSet) -> dict[str, list[Any]]:
    """Settings in which the two sets differ, by name, with A's value and B's."""
    names = sorted({*a.origin, *b.origin})
    return {
        name: [a.origin.get(name), b.origin.get(name)]
        for name in names
        if a.origin.get(name) != b.origin.get(name)
    }


def describe_comparison(report: dict[str, Any]) -> str:
    """A line for each layer or array, and what the tokens have in common."""
    lines = [f"A {report['a']}", f"B {report['b']}", f"{counted(report['clips'], 'clip')} in both"]
    if report["differing_origin"]:
        lines.append("differ in " + ", ".join(report["differing_origin"]))
    for name, item in report.get("tokens", {}).items():
        lines.append(f"{name} tokens: {item['equal']} of {item['tokens']} equal")
    if "tokens" in report:
        lines.append(f"clips with equal tokens: {report['clips_with_equal_tokens']} of {report['clips']}")
    lines.append(
        f"{'':<10} {'vectors':>9} {'max |A-B|':>10} {'max |A|':>9} {'mean cosine':>12} {'least cosine':>12}"
    )
    for name, item in report["states"].items():
        figures = f"{item['max_abs_difference']:>10.2e} {item['max_abs_of_a']:>9.3g}"
        cosine = "-" if item["mean_cosine"] is None else f"{item['mean_cosine']:.8f}"
        least = "-" if item["min_cosine"] is None else f"{item['min_cosine']:.8f}"
        lines.append(f"{name:<10} {item['vectors']:>9} {figures} {cosine:>12} {least:>12}")
    return "\n".join(lines)


class _PairReader:
    """Reads one clip of both sets at a time, into the same memory for every clip."""

    def __init__(self, cache: FeatureCache, a: FeatureSet, b: FeatureSet) -> None:
        self._cache = cache
        self._sets = (a, b)
        self._buffers = {
            (side, array): torch.empty((1, *item.arrays[array].shape), dtype=item.arrays[array].torch_dtype)
            for side, item in enumerate(self._sets)
            for array in STATES[item.kind]
        }

    def states(self, clip_id: str, num_tokens: int | None) -> list[tuple[str, Tensor, Tensor]]:
        """`(name, states of A, states of B)`: by layer up to a number of tokens, or by array."""
        pairs = [
            (array, self._read(0, array, clip_id), self._read(1, array, clip_id))
            for array in STATES[self._sets[0].kind]
        ]
        if num_tokens is None:
            return pairs
        _, a, b = pairs[0]
        in_a, in_b = (item.layers for item in self._sets)
        return [
            (f"layer {layer}", a[in_a.index(layer), :num_tokens], b[in_b.index(layer), :num_tokens])
            for layer in in_a
            if layer in in_b
        ]

    def _read(self, side: int, array: str, clip_id: str) -> Tensor:
        name = self._sets[side].name
        return self._cache.read(name, array, [clip_id], out=self._buffers[side, array])[0]


def _check_comparable(a: FeatureSet, b: FeatureSet) -> None:
    if a.kind != b.kind:
        raise CacheError(f"{a.name} and {b.name} are of different models: name two sets of one kind")
    if a.kind == "thinker" and not set(a.layers) & set(b.layers):
        raise CacheError(f"{a.name} (layers {_listed(a)}) and {b.name} ({_listed(b)}) share no layer")
    for array in STATES[a.kind]:
        if lacking := [item.name for item in (a, b) if array not in item.arrays]:
            raise CacheError(
                f"{lacking[0]} keeps no {array}, by which {a.kind} sets are compared: extract with --keep "
                f"pooled,slots,text,{array}"
            )
        shape_a, shape_b = (item.arrays[array].shape for item in (a, b))
        skipped = 1 if a.kind == "thinker" else 0  # the number of layers may differ
        if shape_a[skipped:] != shape_b[skipped:]:
            raise CacheError(
                f"{array} is {shape_a} in {a.name} and {shape_b} in {b.name}: only equal shapes compare"
            )


def _listed(item: FeatureSet) -> str:
    return " ".join(map(str, item.layers))


def _compare_tokens(
    cache: FeatureCache, a: FeatureSet, b: FeatureSet, clip_id: str, agreements: dict[str, Agreement]
) -> tuple[int, bool]:
    """Count equal tokens. Returns the number of states of the same text, and whether all are equal."""
    row_a, row_b = cache.index(a.name)[clip_id], cache.index(b.name)[clip_id]
    prompts = [row.token_ids[: row.prompt_token_count] for row in (row_a, row_b)]
    answers = [row.token_ids[row.prompt_token_count :] for row in (row_a, row_b)]
    agreements["prompt"].add(*prompts)
    agreements["generated"].add(*answers)
    pairs = zip(row_a.token_ids, row_b.token_ids, strict=False)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return min(common, row_a.token_count, row_b.token_count), prompts[0] == prompts[1] and answers[
        0
    ] == answers[1]


def _largest(so_far: float, found: Tensor) -> float:
    """The larger of the two; a NaN is kept, as `max` would lose it."""
    value = float(found)
    return value if math.isnan(value) or value > so_far else so_far
