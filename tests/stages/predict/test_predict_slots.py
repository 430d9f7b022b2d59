"""`thinkjepa-predict` with runs that read the thinker's slots: joints from a video as from the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from new_videos import FPS, NUM_FRAMES, SIZE, drifting_hand, lossless_video, train_run

from thinkjepa.cache import WriteSession, file_digest
from thinkjepa.stages.evaluate.evaluation import evaluate
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.predict.frames import SplitChoice
from thinkjepa.stages.predict.prediction import predict
from thinkjepa.stages.progress import NoProgress

RunCommand = Callable[..., Any]
GUIDED: dict[str, Any] = {"gate_learning_rate": 0.5, "head_inputs": "latents", "head_learning_rate": 0.03}
"""Latents alone move the hands, and what the thinker saw moves the latents."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [
        make_video(folder / f"{number}.mp4", num_frames=NUM_FRAMES, fps=FPS + number, size=SIZE)
        for number in range(3)
    ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, videos: list[Path], run_extract: RunCommand) -> Path:
    cache_dir = tmp_path_factory.mktemp("slots") / "cache"
    outcome = run_extract(videos[0].parent, cache_dir, "--batch-size", 1)
    assert outcome.status == 0, outcome.stderr
    with WriteSession(cache_dir) as session:
        session.add_labels(map(drifting_hand, videos))
    return cache_dir


def joints_m(run: Path, video: Path, split_frame: int) -> np.ndarray:
    found = predict(
        run,
        video,
        split=SplitChoice(frame=split_frame),
        places={},
        cache_dir=None,
        device="cpu",
        decode_timeout_s=60,
        progress=NoProgress(),
    )
    assert found.hands is not None
    return found.hands.positions_m


@pytest.mark.parametrize("guidance", ["cross", "spatial"])
def test_joints_are_those_of_the_evaluation_and_nothing_of_the_future_moves_them(
    cache: Path, videos: list[Path], tmp_path: Path, guidance: str
) -> None:
    run = train_run(cache, tmp_path / "run", guidance=guidance, **GUIDED)
    evaluate(run)
    row = pq.read_table(run / "eval-test.parquet").to_pylist()[0]
    video = next(path for path in videos if file_digest(path) == row["video_digest"])
    found = joints_m(run, video, row["split_frame"])
    np.testing.assert_allclose(found, np.reshape(row["predicted_joints_m"], found.shape), atol=1e-6)

    trained = TrainedRun.open(run)
    batch = trained.features(None).batch([row["clip_id"]], torch.device("cpu"))
    assert batch.tokens is not None
    zeros = replace(batch.tokens, states=torch.zeros_like(batch.tokens.states))
    with torch.no_grad():
        without = trained.model()(batch.observed, batch.pooled, batch.poses, zeros).joints_m
    moved = np.abs(without[0].flatten(0, 1).numpy() - found).max()
    assert moved > 1e-4, "the control: slots and text move the joints"

    changes = {"plain": None, "future": slice(24, None), "past": slice(0, 1)}
    of = {
        name: joints_m(run, lossless_video(tmp_path / f"{name}.mkv", change=change), 24)
        for name, change in changes.items()
    }
    assert np.array_equal(of["future"], of["plain"])
    assert not np.array_equal(of["past"], of["plain"]), "the control: the thinker alone sees the first frame"
