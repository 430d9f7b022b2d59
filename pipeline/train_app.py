"""thinkjepa-train: train a predictor from a feature cache; reads nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from thinkjepa.cache import FeatureCache
from thinkjepa.pipeline.console import JsonOption, errors, new_single_app, print_result, run_app
from thinkjepa.pipeline.help_page import examples
from thinkjepa.pipeline.options import with_settings
from thinkjepa.pipeline.reporting import TrainingBar
from thinkjepa.pipeline.warm_start import find_warm_start
from thinkjepa.stages.data.selection import read_selection
from thinkjepa.stages.data.splits import SplitRule
from thinkjepa.stages.train.settings import TrainSettings

app = new_single_app()


@app.command(
    epilog=examples(
        "thinkjepa-train --cache-dir features --out runs/thinkjepa-0",
        "thinkjepa-train --cache-dir features --out runs/jepa-0 --variant jepa --epochs 50",
        "thinkjepa-train --params params.yaml --out runs/big --width 768 --plan",
    )
)
@with_settings(settings=TrainSettings, split=SplitRule)
def train_command(
    *,
    cache_dir: Annotated[Path, typer.Option("--cache-dir", help="Folder of the feature cache.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; an interrupted run continues.")],
    feature_set: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Feature set (or the beginning of its name), where the cache holds several."
        ),
    ] = None,
    selection: Annotated[
        Path | None,
        typer.Option(
            help="Train only on the clips of a selection, results/selections/VARIANT.json of `dvc repro`."
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Print parameters, memory, FLOPs, bytes read per clip; train nothing."),
    ] = False,
    json: JsonOption = False,
    settings: TrainSettings,
    split: SplitRule,
) -> None:
    """Train a predictor of future video latents, and of hand trajectories, from a feature cache.

    Writes metrics.json, curve.csv and curve.png, split.json, run.json and the best epoch's weights. The best
    epoch is chosen on the validation clips; the test clips are never read.
    """
    from thinkjepa.stages.train import plan_costs, train

    cache = FeatureCache.open(cache_dir)
    named = {cache.find_set(text).kind: text for text in feature_set or ()}
    if plan:
        costs = plan_costs(
            cache_dir, settings, thinker_set=named.get("thinker"), encoder_set=named.get("encoder")
        ).to_json()
        print_result(json, costs, lambda: describe_costs(costs))
        return
    with TrainingBar(errors, epochs=settings.epochs) as bar:
        metrics = train(
            cache_dir,
            out,
            settings,
            thinker_set=named.get("thinker"),
            encoder_set=named.get("encoder"),
            split=split,
            progress=bar,
            selection=read_selection(selection) if selection else None,
            warm_start=find_warm_start(settings),
        )
    print_result(json, {"run": str(out), **metrics}, lambda: describe_metrics(out, metrics))


def describe_costs(costs: dict[str, Any]) -> str:
    """What a run would take, in a few lines."""
    parts = ", ".join(f"{number / 1e6:.2f} M {part}" for part, number in costs["parameters"].items())
    return "\n".join(
        [
            f"parameters       {parts}",
            f"memory           {costs['memory_bytes'] / 1e9:.2f} GB: weights, optimiser, clips of a forward",
            f"arithmetic       {costs['flops_per_clip'] / 1e12:.4g} TFLOP a clip, forward and backward; "
            f"{costs['tokens_per_clip']} tokens",
            f"read             {costs['read_bytes_per_clip'] / 1e6:.4g} MB a clip",
        ]
    )


def describe_metrics(out: Path, metrics: dict[str, Any]) -> str:
    """A run in a few lines."""
    clips = ", ".join(f"{number} {side}" for side, number in metrics["num_clips"].items())
    latent_error = metrics["validation_latent_error"]
    lines = [
        f"{out}: best epoch {metrics['best_epoch']} of {metrics['epochs']} (clips: {clips})",
        f"  validation latent MSE {latent_error:.5f}, "
        f"latent persistence {metrics['persistence_validation_loss']:.5f}",
    ]
    if (distance_m := metrics.get("validation_distance_m")) is not None:
        lines.append(f"  validation distance of {metrics['num_joints']} joints {1000 * distance_m:.1f} mm")
        if unlabelled := metrics["unlabelled"]["clips"]:
            lines.append(f"  left out {unlabelled} clips: {metrics['unlabelled']['first']}, for one")
    if (initial := metrics.get("initial_validation_loss")) is not None:
        lines.append(
            f"  validation loss before training {initial:.5f}, from random weights "
            f"{metrics['random_start_validation_loss']:.5f}"
        )
    return "\n".join([*lines, f"  next: thinkjepa-eval --run {out}"])


def main() -> None:
    run_app(app)
