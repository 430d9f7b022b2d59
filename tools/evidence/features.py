"""Features of the evidence: a cache for each condition, and those that controls and ablations read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from evidence.plan import Cache, Plan
from thinkjepa.cache import ThinkJepaError
from thinkjepa.pipeline.sample.tables import CLIPS_FILE


class ExtractError(ThinkJepaError):
    """An extraction failed; its own message is above."""


def extract_all(plan: Plan, project: Path, *, advance: Callable[[int], None]) -> None:
    """Fill all caches with what they lack."""
    for name, cache in plan.caches.items():
        command = [str(Path(sys.executable).parent / "thinkjepa-cache"), "extract"]
        command += flags(plan, cache, cache_dir=project / "features" / name, project=project)
        if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
            raise ExtractError(f"the features {name!r} could not be extracted: the reason is above")
        advance(1)


def flags(plan: Plan, cache: Cache, *, cache_dir: Path, project: Path) -> list[str]:
    """The flags of an extraction. Each condition's cache holds the thinker's frames for `history`, too."""
    videos = project / "videos" / cache.condition
    named = {
        "videos": videos,
        "clips": videos / CLIPS_FILE,
        "cache_dir": cache_dir,
        "thinker": project / "models" / cache.thinker / "thinker",
        "encoder": project / "models" / "trained" / "encoder",
        **plan.extract,
        **cache.flags,
    }
    return list(_words(named))


def _words(named: dict[str, object]) -> Iterator[str]:
    for name, value in named.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            yield flag
        else:
            yield from (flag, str(value))
