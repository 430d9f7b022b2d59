"""`thinkjepa-init`: a project of one's own, for `dvc repro`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from thinkjepa.pipeline.cli.console import JsonOption, new_single_app, print_result, run_app
from thinkjepa.pipeline.cli.help import examples
from thinkjepa.pipeline.project.setup import NewProject, ProjectError, set_up_project

app = new_single_app()


@app.command(
    epilog=examples(
        "thinkjepa-init project --videos ~/clips",
        "thinkjepa-init first --sample",
    )
)
def init_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The project's folder; made where missing.")],
    *,
    videos: Annotated[
        Path | None, typer.Option("--videos", help="Folder of the videos. [default: DIR/videos]")
    ] = None,
    sample: Annotated[
        bool,
        typer.Option(
            "--sample", help="Write sample videos and tiny UNTRAINED models, for a first run on a laptop."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make a project: params.yaml with every setting, dvc.yaml, a git and a DVC repository.

    Run it again at any time: what is there stays as it is, and files that differ are named.
    """
    if sample and videos:
        raise ProjectError("--sample writes videos of its own: leave --videos out")
    if sample:
        from thinkjepa.pipeline.sample.demo import set_up_sample_project

        project = set_up_sample_project(folder, seed=0)
    else:
        project = set_up_project(folder, videos=videos)
    commands = next_commands(project)
    record = {
        "folder": str(folder),
        "written": project.written,
        "kept": project.kept,
        "started": project.started,
        "notes": project.notes,
        "next": commands,
    }
    print_result(json, record, f"{describe_project(project)}\nnext: {' && '.join(commands)}")


def describe_project(project: NewProject) -> str:
    """The files written and kept, and notes, in a few lines."""
    done = [*project.written, *project.started] or ["nothing new to write"]
    kept = [f"kept {name} as it is: {advice}" for name, advice in project.kept.items()]
    return "\n".join([f"{project.folder}: {', '.join(done)}", *kept, *project.notes])


def next_commands(project: NewProject) -> list[str]:
    """The command lines to type next."""
    return [f"cd {shlex.quote(str(project.folder))}", "dvc repro"]


def main() -> None:
    run_app(app)
