"""Several runs side by side, as evaluated on their test clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thinkjepa.stages.json_files import read_json

METRICS = ("l1", "l2", "smooth_l1", "cosine")


def describe_runs(runs: Path) -> str:
    """A Markdown table of every evaluated run under a folder, latent persistence last."""
    found = {path.parent.name: read_json(path) for path in sorted(runs.glob("*/eval-test.json"))}
    rows = [_row(name, result["num_clips"], result["latent"]["model"]) for name, result in found.items()]
    if found:
        last = list(found.values())[-1]
        rows.append(_row("latent persistence", last["num_clips"], last["latent"]["persistence"]))
    header = ["| run                | test clips |" + "".join(f" {name:>9} |" for name in METRICS)]
    rule = ["| ------------------ | ---------: |" + " --------: |" * len(METRICS)]
    return "\n".join([*header, *rule, *rows])


def _row(name: str, num_clips: int, metrics: dict[str, Any]) -> str:
    return f"| {name:<18} | {num_clips:>10} |" + "".join(f" {metrics[item]:9.5f} |" for item in METRICS)
