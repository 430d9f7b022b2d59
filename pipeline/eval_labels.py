"""What tables and plots call metrics, and whom they show where room is short."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thinkjepa.stages.evaluate.comparison import BEST_OF_SEEDS
from thinkjepa.stages.evaluate.latent_metrics import LATENT_METRICS
from thinkjepa.stages.evaluate.summary import BETTER_WHEN_LARGER

DECIMALS = 4

Figure = Mapping[str, float | None]
"""Mean, low and high end of its interval."""

METRIC_LABELS = {
    "ade_m": "ADE (m)",
    "fde_m": "FDE (m)",
    "acc_5cm": "within 5 cm",
    "keypoint_m": "keypoints (m)",
    BEST_OF_SEEDS: "keypoints, best of seeds (m)",
    "l1": "L1",
    "l2": "L2 (squared)",
    "smooth_l1": "smooth L1",
    "cosine": "cosine",
}


AXIS_LABELS = {
    "ade_m": "mean distance (m)",
    "fde_m": "mean distance (m)",
    "acc_5cm": "share of joints (0 to 1)",
    "keypoint_m": "mean distance (m)",
    "l2": "mean squared error (latent units²)",
    "cosine": "cosine (1: equal)",
}
"""What the numbers on a picture's axis are, with their unit."""

DIFFERENCE_LABELS = {
    "ade_m": "difference (m)",
    "fde_m": "difference (m)",
    "acc_5cm": "difference of shares",
    "keypoint_m": "difference (m)",
    "l2": "difference (latent units²)",
    "cosine": "difference of cosines",
}

VERDICT_LABELS = {"ade_m": "ADE", "l2": "latent L2"}
"""What a verdict is about."""


def metric_label(metric: str, *, last_frame_s: float | None = None) -> str:
    """What a table calls a metric. FDE says when its frame is, where `last_frame_s` is given."""
    if metric == "fde_m" and last_frame_s is not None:
        return f"FDE at {last_frame_s:.2f} s (m)"
    return METRIC_LABELS[metric]


def metric_title(metric: str, *, last_frame_s: float | None = None) -> str:
    """What a panel of a picture is about; its axis has the unit."""
    label = metric_label(metric, last_frame_s=last_frame_s).removesuffix(" (m)").removesuffix(" (squared)")
    return f"latent {label}" if metric in LATENT_METRICS else label


def better_arrow(metric: str) -> str:
    """Up where more is better, else down."""
    return "↑" if metric in BETTER_WHEN_LARGER else "↓"


def is_main(entry: Mapping[str, Any]) -> bool:
    """Whether it is a model, or a baseline that needs none."""
    return entry["method"] == "model" or entry["group"] is None


def signed_number(value: float, decimals: int = DECIMALS) -> str:
    """`-0.0100`, `+0.0100`, and `0.0000` of what rounds to zero."""
    text = f"{value:+.{decimals}f}"
    return text if float(text) else text[1:]


def figure_text(figure: Figure) -> str:
    """`0.0612 [0.0580, 0.0640]`; without the interval where it is unknown."""
    mean = f"{figure['mean']:.{DECIMALS}f}"
    if figure["low"] is None:
        return mean
    return f"{mean} [{figure['low']:.{DECIMALS}f}, {figure['high']:.{DECIMALS}f}]"
