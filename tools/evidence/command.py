"""`tools/run_evidence`: the steps of `make evidence`, each continued where it was interrupted."""

import json as json_module
import os
from pathlib import Path
from typing import Annotated

import typer

from evidence.plan import Plan, TaskName
from thinkjepa.pipeline.cli.console import errors, new_app, print_text, run_app
from thinkjepa.pipeline.cli.help import examples
from thinkjepa.pipeline.cli.progress import TerminalProgress

app = new_app("The evidence on the hand sample, or on the memory maze, step by step.")

PARAMS = "params.yaml"

Project = Annotated[Path, typer.Option(help="Folder of the evidence, with its params.yaml.")]

Workers = Annotated[int | None, typer.Option(min=1, help="Processes. [default: one per core]")]


@app.command(epilog=examples("tools/run_evidence setup --project evidence"))
def setup(
    project: Project = Path(),
    task: Annotated[TaskName, typer.Option(help="Task of a new project.")] = "hands",
) -> None:
    """Write settings and models into a new project; what is there is kept."""
    from evidence.setup import set_up

    set_up(project, task=task)


@app.command(epilog=examples("tools/run_evidence data --project evidence"))
def data(project: Project = Path(), workers: Workers = None) -> None:
    """Render all episodes under all conditions, and write them out as videos with poses."""
    from evidence.tasks import TASKS

    plan = Plan.read(project / PARAMS)
    with TerminalProgress(errors) as progress:
        total = sum(part.episodes for part in plan.parts.values())
        progress.begin("render", total=total, unit="episodes")
        TASKS[plan.task].write_videos(plan, project, workers or os.cpu_count() or 1, progress.advance)


@app.command(epilog=examples("tools/run_evidence features --project evidence"))
def features(project: Project = Path()) -> None:
    """Extract what the caches lack, with the models in PROJECT/models."""
    from evidence.features import extract_all

    plan = Plan.read(project / PARAMS)
    with TerminalProgress(errors) as progress:
        progress.begin("extract", total=len(plan.caches), unit="caches")
        extract_all(plan, project, advance=progress.advance)


@app.command(epilog=examples("tools/run_evidence gates --project evidence"))
def gates(project: Project = Path()) -> None:
    """Read what a cue tells out of what guides; ends with status 1 where a gate fails that must hold."""
    from evidence.gates import read_outs

    plan = Plan.read(project / PARAMS)
    found = read_outs(plan, project)
    (project / "gates.json").write_text(json_module.dumps(found, indent=1) + "\n", encoding="utf-8")
    print_text(json_module.dumps(found, indent=1))
    if plan.gates_must_pass and not found["passed"]:
        raise typer.Exit(1)


@app.command(epilog=examples("tools/run_evidence runs --project evidence --workers 2"))
def runs(
    project: Project = Path(),
    workers: Workers = None,
    only: Annotated[str, typer.Option(help="Arms to run, by commas. [default: all]")] = "",
) -> None:
    """Train and measure all runs that are missing."""
    from evidence.runs import run_all

    plan = Plan.read(project / PARAMS)
    chosen = [job for job in plan.jobs() if not only or job.arm in only.split(",")]
    with TerminalProgress(errors) as progress:
        progress.begin("runs", total=len(chosen), unit="runs")
        run_all(plan, chosen, project, workers=workers or os.cpu_count() or 1, advance=progress.advance)
    if not only:
        names = [job.name for job in chosen]
        (project / "runs" / "finished.json").write_text(json_module.dumps(names, indent=1) + "\n")


@app.command(epilog=examples("tools/run_evidence report --project evidence --out docs"))
def report(
    project: Project = Path(),
    out: Annotated[Path, typer.Option(help="Folder for evidence.json.")] = Path(),
) -> None:
    """Write all figures with their intervals."""
    from evidence.summary import ablated, summarize

    plan = Plan.read(project / PARAMS)
    result = summarize(plan, project)
    if plan.ablations:
        result["ablations"] = ablated(plan, project)
    (out / "evidence.json").write_text(json_module.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_app(app)
