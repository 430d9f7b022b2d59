"""A world in which the thinker saw something at one place, and the future jumps there and nowhere else.

Slots at all other places balance the cue, so that the mean over places is the same for every clip. Whoever
reads the mean alone can at best predict the mean jump everywhere. Whoever knows the place can be exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from latent_cache import FRAME_SLOTS, GRID, SPLITS, THINKER, clip_row, encoder_set, thinker_set

from thinkjepa.cache import STREAMS, ClipFeatures, ClipRow, WriteSession
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.evaluate.evaluation import evaluate
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

PLACES = GRID.tokens_per_step
JUMP = 2.0
WITHOUT_THE_PLACE = JUMP**2 * (1 / PLACES) * (1 - 1 / PLACES)
"""Mean squared error of the mean jump at every place, the best without knowing the place."""

SETTINGS = TrainSettings(
    epochs=30,
    batch_size=16,
    clips_per_forward=16,
    learning_rate=3e-3,
    gate_learning_rate=3e-2,
    schedule="cosine",
    warmup=0.05,
    latent_target="change",
    depth=2,
    width=24,
    heads=2,
    fusion_width=32,
    device="cpu",
    tracker="none",
)


@pytest.fixture(scope="module")
def error_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., float]:
    """A function that trains with some settings and gives the test clips' mean squared error."""
    root = tmp_path_factory.mktemp("planted")
    write_world(root / "cache", num_videos=96)

    @cache
    def error(**changes: Any) -> float:
        out = root / "-".join(map(str, changes.values()))
        train(root / "cache", out, replace(SETTINGS, **changes), split=SplitRule(group_by="video"))
        found: float = evaluate(out, device="cpu")["latent"]["model"]["l2"]
        return found

    return error


def write_world(root: Path, *, num_videos: int) -> None:
    """Two clips a video, each with its own place."""
    generator = torch.Generator().manual_seed(0)
    clips = [clip_row(video, split, windows=1) for video in range(num_videos) for split in SPLITS]
    places = torch.randint(PLACES, (len(clips),), generator=generator).tolist()
    latents = [_latents(clip, place, generator) for clip, place in zip(clips, places, strict=True)]
    states = [_states(clip, place, generator) for clip, place in zip(clips, places, strict=True)]
    with WriteSession(root) as session:
        session.add_clips(clips)
        for feature_set, features in (
            (encoder_set(windows=1, framing=None), latents),
            (thinker_set(with_tokens=False, with_slots=True), states),
        ):
            with session.writer(session.resolve(feature_set)) as writer:
                assert not writer.append(features)


def _latents(clip: ClipRow, place: int, generator: torch.Generator) -> ClipFeatures:
    observed = torch.randn(1, PLACES, GRID.dim, generator=generator).repeat(GRID.observed_steps, 1, 1)
    future = observed[-1:].repeat(GRID.future_steps, 1, 1)
    future[:, place] += JUMP
    return ClipFeatures(clip.clip_id, {"observed": observed.half(), "future": future[None].half()})


def _states(clip: ClipRow, place: int, generator: torch.Generator) -> ClipFeatures:
    num_slots = PLACES + FRAME_SLOTS
    slots = 0.1 * torch.randn(THINKER.levels, num_slots, THINKER.dim, generator=generator)
    slots[:, :PLACES, 0] = -1 / (PLACES - 1)
    slots[:, place, 0] = 1.0
    slots[:, PLACES:, 0] = 0.0
    places = [
        (0.5, 1.0, (row + 0.5) / GRID.height, (column + 0.5) / GRID.width)
        for row in range(GRID.height)
        for column in range(GRID.width)
    ]
    frames = [(1.0 - frame, 0.5, torch.nan, torch.nan) for frame in range(FRAME_SLOTS)]
    pooled = slots[:, None, :PLACES].mean(dim=2).repeat(1, len(STREAMS), 1)
    arrays = {
        "pooled": pooled,
        "slots": slots.half(),
        "slot_position": torch.tensor([*places, *frames]),
        "text_tokens": torch.zeros(THINKER.levels, 1, THINKER.dim).half(),
        "text_kind": torch.ones(1, dtype=torch.uint8),
    }
    return ClipFeatures(clip.clip_id, arrays, slot_count=num_slots, text_count=1)


@pytest.mark.parametrize("guidance", ["cross", "spatial"])
def test_guidance_that_knows_places_learns_the_cue(error_of: Callable[..., float], guidance: str) -> None:
    assert error_of(guidance=guidance) < 0.3 * WITHOUT_THE_PLACE


def test_film_on_the_mean_over_places_cannot(error_of: Callable[..., float]) -> None:
    assert error_of(guidance="film", use_streams="prompt") > 0.9 * WITHOUT_THE_PLACE


@pytest.mark.soak
@pytest.mark.parametrize("guidance", ["cross", "spatial"])
def test_slots_of_other_clips_do_not_help(error_of: Callable[..., float], guidance: str) -> None:
    assert error_of(guidance=guidance, guidance_source="shuffled") > 0.9 * WITHOUT_THE_PLACE
