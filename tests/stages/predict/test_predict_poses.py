"""`thinkjepa-predict` with a run that forecasts hands from observed hands: no frozen model runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from new_videos import FPS, NUM_FRAMES, SIZE, drifting_hand, frames_of, lossless_video, train_run

from thinkjepa.cache import WriteSession

RunCommand = Callable[..., Any]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [
        make_video(folder / f"{number}.mp4", num_frames=NUM_FRAMES, fps=FPS + number, size=SIZE)
        for number in range(3)
    ]


def test_it_draws_the_hand_without_a_model_and_needs_labels(
    videos: list[Path], run_extract: RunCommand, run_command: RunCommand, tmp_path: Path
) -> None:
    extracted = run_extract(videos[0].parent, tmp_path / "cache", "--batch-size", 1)
    assert extracted.status == 0, extracted.stderr
    with WriteSession(tmp_path / "cache") as session:
        session.add_labels(map(drifting_hand, videos))
    run = train_run(tmp_path / "cache", tmp_path / "run", variant="poses")

    def predict(video: Path, out: str) -> Any:
        models = ("--encoder", tmp_path / "none", "--thinker", tmp_path / "none")
        line = ("--run", run, "--video", video, "-o", tmp_path / out, *models)
        return run_command("thinkjepa-predict", *line, "--json")

    done = predict(videos[1], "hand.mp4")
    assert done.status == 0, done.stderr
    assert "latents" not in done.json
    assert done.json["mean_distance_m"] < 0.01, "an even motion, which the ridge knows"
    assert len(frames_of(tmp_path / "hand.mp4")) > len(done.json["future_frames"])
    assert json.loads((tmp_path / "hand.json").read_text())["positions_m"] == done.json["positions_m"]
    picture = predict(videos[1], "hand.png")
    assert (picture.status, len(picture.stderr.splitlines())) == (2, 1)
    assert "the run predicts no latents" in picture.stderr
    new = predict(lossless_video(tmp_path / "new.mkv", change=None), "new.mp4")
    assert (new.status, len(new.stderr.splitlines())) == (2, 1)
    assert "from observed poses alone" in new.stderr
    assert not list(tmp_path.glob("new.mp4"))
