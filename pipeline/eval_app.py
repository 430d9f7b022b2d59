"""thinkjepa-eval: measure a trained run on clips that training has not touched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from thinkjepa.pipeline.console import errors, new_single_app, print_json, print_text, run_app

app = new_single_app()


@app.command()
def eval_command(
    *,
    run: Annotated[Path, typer.Option("--run", help="Folder of a finished training run.")],
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option(help="Side of the run's split that is measured.")
    ] = "test",
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache-dir", help="The cache, where it is no longer where the run found it."),
    ] = None,
    device: Annotated[Literal["auto", "cpu"], typer.Option(help="Where to compute: auto or cpu.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Latent distances of a run's predictions, beside latent persistence on the same clips.

    Writes eval-SPLIT.json and eval-SPLIT-clips.csv (a row per clip) into the run. L1, L2 (mean squared) and
    smooth L1 are better when smaller, cosine when larger.
    """
    from thinkjepa.stages.evaluate import evaluate

    with errors.status("evaluating"):
        result = evaluate(run, split=split, cache_dir=cache_dir, device=device)
    if json:
        print_json(result)
    else:
        print_text(describe_result(run, result))


def describe_result(run: Path, result: dict[str, Any]) -> str:
    """Means over the split and over the horizon, as a table."""
    names = list(result["latent"]["model"])
    lines = [f"{run}: {result['variant']} on {result['num_clips']} {result['split']} clips", ""]
    lines.append(" " * 20 + "".join(f"{name:>12}" for name in names))
    for forecast in ("model", "persistence"):
        row = "".join(f"{result['latent'][forecast][name]:12.5f}" for name in names)
        lines.append(f"{forecast:<20}{row}")
    lines += ["", f"{'L2 by horizon':<20}{'model':>12}{'persistence':>12}"]
    for step in result["horizon"]:
        label = f"step {step['step']} ({step['seconds']:.2f} s)"
        lines.append(f"{label:<20}{step['model']['l2']:12.5f}{step['persistence']['l2']:12.5f}")
    return "\n".join(lines)


def main() -> None:
    run_app(app)
