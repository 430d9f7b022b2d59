"""The installed command on small clips: 8 + 8 frames at 10 per second, 8 thinker frames."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import commands
import pytest
from commands import BIN

SMALL = ("--thinker-frames", "8", "--observed-frames", "8", "--future-frames", "8", "--dense-fps", "10")


KEEP_ALL = "pooled,slots,text,tokens"


@dataclass(frozen=True)
class Outcome:
    """Status and output of a command that has ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.stdout)
        return parsed


RunCommand = Callable[..., Outcome]
Completed = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def run_command() -> RunCommand:
    """Run a command of the project to its end; behind lines of a shell, the installed one."""

    def run(name: str, *arguments: object, shell_prefix: str = "", timeout_s: float = 240) -> Outcome:
        if shell_prefix:
            line = ["bash", "-c", f'{shell_prefix}; exec "$0" "$@"', str(BIN / name), *map(str, arguments)]
            done = subprocess.run(line, capture_output=True, text=True, timeout=timeout_s, check=False)
        else:
            done = commands.run_command(name, *arguments, timeout_s=timeout_s)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def call_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Completed]:
    """Call a command's `main` in this process, where warnings are errors."""

    def call(main: Callable[[], object], name: str, *arguments: object) -> Completed:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, int(stop.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def extract_arguments(tiny_models: Path) -> Callable[[Path, Path], Sequence[object]]:
    """The arguments of a small extraction with the tiny models, which keeps all tokens."""

    def arguments(videos: Path, cache_dir: Path) -> Sequence[object]:
        places = ("--videos", videos, "--cache-dir", cache_dir)
        models = ("--thinker", tiny_models / "thinker", "--encoder", tiny_models / "encoder")
        return ("extract", *places, *models, *SMALL, "--batch-size", 2, "--keep", KEEP_ALL)

    return arguments


@pytest.fixture(scope="session")
def run_extract(run_command: RunCommand, extract_arguments: Callable[..., Sequence[object]]) -> RunCommand:
    """`thinkjepa-cache extract` with the tiny models on small clips; further flags win."""

    def run(videos: Path, cache_dir: Path, *flags: object, **options: Any) -> Outcome:
        return run_command(
            "thinkjepa-cache", *extract_arguments(videos, cache_dir), *flags, "--json", **options
        )

    return run


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Two tasks, several rates and containers; every good one gives clips at the small settings."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "pour" / "0.mp4", num_frames=150, fps=30)
    make_video(folder / "pour" / "1.mkv", num_frames=135, fps=27, size=(224, 128))
    make_video(folder / "stack" / "deep" / "0.webm", num_frames=100, fps=25, codec="libvpx-vp9")
    make_video(folder / "stack" / "1.MOV", num_frames=120, fps=30)
    return folder


@pytest.fixture(scope="session")
def extracted(tmp_path_factory: pytest.TempPathFactory, videos: Path, run_extract: RunCommand) -> Path:
    """The cache of `videos`, which tests must not change."""
    cache_dir = tmp_path_factory.mktemp("extracted") / "cache"
    outcome = run_extract(videos, cache_dir)
    assert outcome.status == 0, outcome.stderr
    assert outcome.json["videos"] == 4
    assert outcome.json["extracted"] == outcome.json["clips"] >= 6
    return cache_dir
