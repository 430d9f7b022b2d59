"""thinkjepa-train: train a predictor from a feature cache; reads nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from thinkjepa.cache.records import Kind
from thinkjepa.pipeline.cli.console import JsonOption, errors, loading, new_single_app, print_result, run_app
from thinkjepa.pipeline.cli.help import examples
from thinkjepa.pipeline.cli.options import set_names, with_settings
from thinkjepa.pipeline.cli.progress import TrainingBar
from thinkjepa.pipeline.report.training import describe_costs, describe_metrics, describe_split
from thinkjepa.stages.data.history import describe_histories
from thinkjepa.stages.data.partition import SplitRule
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
            "--set",
            autocompletion=set_names,
            help="Feature set (or the beginning of its name), where the cache holds several.",
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
        typer.Option(
            "--plan", help="Print parameters, memory, FLOPs, bytes read per clip, the split; train nothing."
        ),
    ] = False,
    json: JsonOption = False,
    settings: TrainSettings,
    split: SplitRule,
) -> None:
    """Train a predictor of future video latents, and of hand trajectories, from a feature cache.

    Writes metrics.json, curve.csv and curve.png, split.json, run.json and the best epoch's weights. The best
    epoch is chosen on the validation clips; the test clips are never read.
    """
    with loading():
        from thinkjepa.pipeline.project.run_store import find_warm_start
        from thinkjepa.stages.data.tracked_files import read_selection
        from thinkjepa.stages.train.run import train

    named = _named_sets(cache_dir, feature_set or ())
    if plan:
        _print_plan(cache_dir, settings, split, named, json=json)
        return
    done = (out / "run.json").is_file()  # then it is this very run: another one is refused
    with TrainingBar(errors) as bar:
        metrics = train(
            cache_dir,
            out,
            settings,
            thinker_set=named.get("thinker"),
            encoder_set=named.get("encoder"),
            history_set=named.get("history"),
            split=split,
            progress=bar,
            selection=read_selection(selection) if selection else None,
            warm_start=find_warm_start(settings),
            report=bar.report,
        )
    if os.environ.get("RANK", "0") == "0":  # of several processes that torchrun or accelerate starts
        print_result(json, {"run": str(out), **metrics}, describe_metrics(out, metrics, was_finished=done))


def _named_sets(cache_dir: Path, names: Sequence[str]) -> dict[Kind, str]:
    """The names by the kind of the sets that they mean. Raises CacheError for one that means none."""
    from thinkjepa.cache import FeatureCache

    cache = FeatureCache.open(cache_dir)
    return {cache.find_set(name).kind: name for name in names}


def _print_plan(
    cache_dir: Path, settings: TrainSettings, split: SplitRule, named: Mapping[Kind, str], *, json: bool
) -> None:
    """Print costs and split of a run. `named` are feature sets by kind, of those that the user names."""
    from thinkjepa.stages.train.plan import plan_costs

    costs, clips = plan_costs(
        cache_dir,
        settings,
        thinker_set=named.get("thinker"),
        encoder_set=named.get("encoder"),
        history_set=named.get("history"),
        split=split,
    )
    history = describe_histories(clips.histories)
    record = {
        **costs.to_json(),
        "split": clips.sizes_to_json(),
        "histories": clips.histories.to_json(),
    }
    table = describe_split(clips.sizes, grouping=clips.stored.grouping)
    lines = [describe_costs(record), table, *([f"history          {history}"] if history else [])]
    print_result(json, record, "\n".join(lines))
    if clips.warning:
        errors.print(escape(clips.warning), style="yellow", soft_wrap=True)


def main() -> None:
    run_app(app)
