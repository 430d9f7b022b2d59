"""Episodes of the evidence: rendered once under all conditions, and written out as videos with poses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from hands.generate import check_renderable, render_episodes

from evidence.plan import Part, Plan
from thinkjepa.pipeline.sample.episodes import POSES_FILE
from thinkjepa.pipeline.sample.expand import expand

SIZE_PX = 96


def write_videos(plan: Plan, project: Path, workers: int, advance: Callable[[int], None]) -> None:
    """Render what `project/episodes` lacks, and write `project/videos/<condition>`."""
    render_parts(plan, project / "episodes", workers=workers, advance=advance)
    expand_conditions(plan, project / "episodes", project / "videos")


def render_parts(plan: Plan, out: Path, *, workers: int, advance: Callable[[int], None]) -> None:
    """Write `out/<condition>/<part>` for each part that is not there yet, whole or not at all."""
    for name, part in plan.parts.items():
        folders = {condition: out / condition / name for condition in plan.conditions}
        if all((folder / POSES_FILE).is_file() for folder in folders.values()):
            advance(part.episodes)
            continue
        check_renderable(size_px=SIZE_PX)
        _render(part, out / ".unfinished", plan, workers=workers, advance=advance)
        for condition, folder in folders.items():
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            (out / ".unfinished" / condition).replace(folder)


def _render(part: Part, out: Path, plan: Plan, *, workers: int, advance: Callable[[int], None]) -> None:
    shutil.rmtree(out, ignore_errors=True)
    render_episodes(
        {condition: out / condition for condition in plan.conditions},
        numbers=range(part.episodes),
        seed=part.seed,
        size_px=SIZE_PX,
        workers=workers,
        pairs=part.pairs,
        advance=advance,
    )


def expand_conditions(plan: Plan, episodes: Path, videos: Path) -> None:
    """Write `videos/<condition>`, each a folder of videos with its own `clips.csv`."""
    for condition in plan.conditions:
        shutil.rmtree(videos / condition, ignore_errors=True)
        expand(episodes / condition, videos / condition)
