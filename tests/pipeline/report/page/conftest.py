"""Pages are made once: of a small project whose names and words are hostile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from extraction import RunCommand
from new_videos import train_run
from pages.hostile_project import HOSTILE_NAME, Project, say_hostile_words

from thinkjepa.stages.data.partition import SplitRule


@pytest.fixture(scope="session")
def project(
    tmp_path_factory: pytest.TempPathFactory,
    make_video: Callable[..., Path],
    write_egodex: Callable[..., Path],
    run_extract: RunCommand,
    run_command: RunCommand,
) -> Project:
    """Eight videos with hands, a guided run that reads slots and an unguided one, and their page."""
    root = tmp_path_factory.mktemp("project")
    made = Project(root / "videos", root / "cache", root / "runs", root / "report")
    for number in range(8):
        path = made.videos / "pour" / f"{HOSTILE_NAME}{number}.mp4"
        num_frames = 34 + number  # each is a video of its own by its content
        make_video(path, num_frames=num_frames, fps=10)
        write_egodex(path.with_suffix(".hdf5"), num_frames=num_frames, seed=number)
    outcome = run_extract(made.videos, made.cache, "--keep", "pooled,slots,text")
    assert outcome.status == 0, outcome.stderr
    say_hostile_words(made.cache)
    rule = SplitRule(group_by="video", test_fraction=0.4, validation_fraction=0.3)
    for name, settings in {"cross": {"guidance": "cross"}, "jepa": {"variant": "jepa"}}.items():
        train_run(made.cache, made.runs / name, rule=rule, epochs=2, **settings)
    arguments = ("--runs", made.runs, "--report", made.report, "--videos", made.videos, "--device", "cpu")
    outcome = run_command("thinkjepa-eval", *arguments)
    assert outcome.status == 0, outcome.stderr
    assert f"report: {made.report / 'index.html'}" in outcome.stdout
    return made
