"""Pictures of a sample project that has run, for a newcomer to look at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from thinkjepa.cache import FeatureCache, ThinkJepaError
from thinkjepa.stages.json_files import read_json

SHOWN_RUN = "results/runs/thinkjepa-0"


class DemoError(ThinkJepaError):
    """A command that draws the demo's pictures failed; its own message is above."""


def draw_pictures(out: Path) -> list[str]:
    """Hands over the frames, features of a test clip, and its predicted future; in `results/pictures`.

    The clip is the last one of the first test video: there the hand is on its way. Returns the commands
    that drew them, as run in `out`.
    """
    test_ids = set(read_json(out / SHOWN_RUN / "split.json")["clips"]["test"])
    test_clips = [
        clip for clip in FeatureCache.open(out / "features").clips.all() if clip.clip_id in test_ids
    ]
    clip = min(test_clips, key=lambda clip: (clip.video, -clip.split_frame))
    pictures = "results/pictures"
    commands = [
        ["thinkjepa-data", "check", "videos", "--plot", f"{pictures}/hands.png"],
        [
            "thinkjepa-cache",
            "show",
            "features",
            clip.clip_id,
            "-o",
            f"{pictures}/features.png",
            "--videos",
            "videos",
        ],
        [
            "thinkjepa-predict",
            "--run",
            SHOWN_RUN,
            "--cache-dir",
            "features",
            "--video",
            f"videos/{clip.video}",
        ],
    ]
    commands[-1] += ["--split-frame", str(clip.split_frame), "-o", f"{pictures}/future.mp4"]
    (out / pictures).mkdir(parents=True, exist_ok=True)
    for command in commands:
        _run(out, *command)
    return [" ".join(command) for command in commands]


def _run(folder: Path, command: str, *arguments: str) -> None:
    """Run a command of this environment in a folder, what it prints on standard error."""
    line = [str(Path(sys.executable).parent / command), *arguments]
    done = subprocess.run(line, cwd=folder, check=False, stdout=sys.stderr)
    if done.returncode:
        raise DemoError(f"{command} {' '.join(arguments)} failed in {str(folder)!r}: its message is above")
