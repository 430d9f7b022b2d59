"""The table of a sweep: a row per group of runs, best first, with the settings in which they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thinkjepa.pipeline.eval_labels import (
    DECIMALS,
    METRIC_LABELS,
    Figure,
    better_arrow,
    figure_text,
    metric_label,
)

MAIN = ("ade_m", "fde_m", "acc_5cm", "l2", "cosine")
"""Test metrics that a row has room for; the others stand in the tables below it."""

VALIDATION_LABELS = {
    "validation_distance_m": "validation distance (m)",
    "validation_latent_error": "validation latent error",
    "validation_loss": "validation loss",
}


def ranking_lines(comparison: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows; none where there is only one group, or no validation figure."""
    ranking = comparison.get("ranking")
    if ranking is None or len(ranking["rows"]) < 2:
        return [], []
    metrics = {entry["name"]: entry["metrics"] for entry in comparison["entries"]}
    shown = [metric for metric in MAIN if any(metric in metrics[row["name"]] for row in ranking["rows"])]
    if ranking["sorted_by"] not in (*VALIDATION_LABELS, *shown):
        shown.append(ranking["sorted_by"])
    validation = _validation_shown(ranking)
    header = ["", "variant", *ranking["varied"], "seeds"]
    header += [f"{VALIDATION_LABELS[name]} ↓" for name in validation]
    last_frame_s = comparison["last_frame"]["seconds"]
    header += [
        f"test {metric_label(metric, last_frame_s=last_frame_s)} {better_arrow(metric)}" for metric in shown
    ]
    rows = [
        [
            str(place),
            row["variant"],
            *(str(row["settings"][name]) for name in ranking["varied"]),
            str(row["num_seeds"]),
            *(_with_spread(row, name) for name in validation),
            *(_test_text(metrics[row["name"]].get(metric)) for metric in shown),
        ]
        for place, row in enumerate(ranking["rows"], start=1)
    ]
    return header, rows


def ranking_note(comparison: Mapping[str, Any]) -> str:
    """Which clips the order comes from, and what that allows."""
    ranking = comparison["ranking"]
    if ranking["clips"] == "validation":
        return (
            f"Sorted by {VALIDATION_LABELS[ranking['sorted_by']]}: choose by it, and report the test columns "
            "of what was chosen. ± is the standard deviation over seeds, brackets are intervals as above."
        )
    return (
        f"**Sorted by the {comparison['split']} clips' {METRIC_LABELS[ranking['sorted_by']]}: who chooses by "
        "this order chooses on the clips that the report stands on.** Choose by a validation column."
    )


def _validation_shown(ranking: Mapping[str, Any]) -> Sequence[str]:
    """The joints' distance and the latents' error where all have them, and what is sorted by."""
    everywhere = [
        name for name in VALIDATION_LABELS if all(name in row["validation"] for row in ranking["rows"])
    ]
    return [name for name in everywhere if name != "validation_loss" or name == ranking["sorted_by"]]


def _with_spread(row: Mapping[str, Any], name: str) -> str:
    mean = f"{row['validation'][name]:.{DECIMALS}f}"
    spread = row["validation_seed_std"].get(name)
    return mean if spread is None else f"{mean} ± {spread:.{DECIMALS}f}"


def _test_text(figure: Figure | None) -> str:
    return "" if figure is None else figure_text(figure)
