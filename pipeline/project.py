"""Where a project's own folders are, also as seen from the temporary workspace of a DVC experiment.

`dvc exp run --queue` and `--temp` check the project out again under PROJECT/.dvc/tmp/exps/. What git does not
keep (videos, models, features, runs) is not there, so relative paths are meant from the project itself.
"""

from __future__ import annotations

from pathlib import Path

WORKSPACES = (".dvc", "tmp", "exps")


def project_folder(workspace: Path) -> Path:
    """The folder that relative paths of `workspace`/params.yaml are meant from.

    `workspace` as it is given, or, in an experiment's workspace, the same folder of the project that the
    experiment was queued in, absolute.
    """
    here = workspace.resolve()
    root = next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), None)
    if root is None:
        return workspace
    parts = root.parts
    for place in range(len(parts) - len(WORKSPACES), 0, -1):
        if parts[place : place + len(WORKSPACES)] == WORKSPACES:
            return Path(*parts[:place]) / here.relative_to(root)
    return workspace


def model_place(name: str, project: Path) -> str:
    """A model's name, or its folder in the project, if there is one of that name."""
    folder = project / Path(name).expanduser()
    return str(folder) if name and folder.is_dir() else name
