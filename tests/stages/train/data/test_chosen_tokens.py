"""Tokens of the kinds that cross-attention reads: clips that have none, and the sample for statistics."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from latent_cache import TINY_JEPA

from thinkjepa.cache import FeatureCache
from thinkjepa.pipeline.report.training import describe_start
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.evaluation import evaluate
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.train.data.features import choose_features
from thinkjepa.stages.train.data.statistics import TOKEN_CLIPS, token_sample, token_statistics
from thinkjepa.stages.train.data.tokens import ClipTokens, packed
from thinkjepa.stages.train.events import RunStarts, TrainEvent
from thinkjepa.stages.train.run import train

BuildCache = Callable[..., Path]
CROSS = replace(
    TINY_JEPA,
    variant="thinkjepa",
    guidance="cross",
    epochs=2,
    batch_size=2,
    clips_per_forward=1,
    gate_learning_rate=0.1,
)


def run(cache: Path, out: Path, **changes: Any) -> tuple[dict[str, Any], list[TrainEvent]]:
    events: list[TrainEvent] = []
    metrics = train(
        cache,
        out,
        replace(CROSS, **changes),
        thinker_set=None,
        encoder_set=None,
        split=SplitRule(group_by="video"),
        progress=lambda **_: None,
        report=events.append,
    )
    return metrics, events


@pytest.mark.parametrize("variant", ["thinkjepa", "vlm"])
def test_generated_tokens_of_a_thinking_model_are_read(
    latent_cache: BuildCache, tmp_path: Path, variant: str
) -> None:
    """All that it generates is reasoning; every fifth clip has nothing generated, one clip a forward."""
    cache = latent_cache(with_tokens=True, thinking=True)
    metrics, events = run(cache, tmp_path / "run", variant=variant, cross_tokens="generated")
    features = choose_features(FeatureCache.open(cache), replace(CROSS, cross_tokens="generated"))
    assert features.reading.kinds == (3, 4)
    ids = json.loads((tmp_path / "run" / "split.json").read_text())["clips"]
    number_of = {clip_id: index for index, clip_id in enumerate(in_order_of_making(cache))}
    without = {side: sum(number_of[clip_id] % 5 == 0 for clip_id in own) for side, own in ids.items()}
    assert metrics["without_tokens"] == without
    assert without["train"] > 0
    (start,) = [event for event in events if isinstance(event, RunStarts)]
    assert f"without tokens   {without['train']} train" in describe_start(start)
    assert evaluate(tmp_path / "run")["latent"]["model"]["l2"] > 0


def in_order_of_making(cache: Path) -> list[str]:
    """Clip ids by the number of their video, as the maker counts them."""
    clips = list(FeatureCache.open(cache).clips.all())
    numbered = sorted((int(clip.video.split("/")[1].split(".")[0]), clip.split_frame) for clip in clips)
    by_key = {(int(clip.video.split("/")[1].split(".")[0]), clip.split_frame): clip.clip_id for clip in clips}
    return [by_key[key] for key in numbered]


def test_a_run_whose_training_clips_have_no_chosen_token_is_refused(
    latent_cache: BuildCache, tmp_path: Path
) -> None:
    cache = latent_cache(with_tokens=True, thinking=True)
    with pytest.raises(StageError, match=r"--cross-tokens answer.*choose of all, prompt, text, visual, gene"):
        run(cache, tmp_path / "run", cross_tokens="answer")


def test_a_run_of_when_generated_left_out_the_reasoning_is_refused(
    latent_cache: BuildCache, tmp_path: Path
) -> None:
    run(latent_cache(with_tokens=True), tmp_path / "run", cross_tokens="visual, generated", epochs=1)
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    assert TrainedRun.open(path.parent).record == record
    path.write_text(json.dumps({name: value for name, value in record.items() if name != "clips"}))
    with pytest.raises(StageError, match="train again with --cross-tokens answer"):
        TrainedRun.open(path.parent)


def test_a_batch_without_any_token_is_a_token_long() -> None:
    empty = packed([ClipTokens(torch.zeros(3, 0, 5)), ClipTokens(torch.zeros(3, 0, 5))])
    assert empty.states.shape == (2, 3, 1, 5)
    assert empty.counts == (0, 0)
    assert packed([ClipTokens(torch.ones(3, 2, 5))]).states.shape == (1, 3, 2, 5)


def test_token_statistics_are_of_clips_from_all_videos(latent_cache: BuildCache) -> None:
    """Every part of many sorted ids is in the sample, and only clips with tokens."""
    cache = FeatureCache.open(latent_cache(with_tokens=True, num_videos=80))
    features = choose_features(cache, replace(CROSS, cross_tokens="generated"))
    ids = features.clips.clip_ids.to_pylist()
    sample = token_sample(features, ids)
    assert sample == token_sample(features, ids)
    assert len(sample) == len(set(sample)) == TOKEN_CLIPS
    assert features.count_tokens(sample).min() > 0
    quarters = [ids[start : start + 40] for start in range(0, 160, 40)]
    assert min(len(set(sample) & set(quarter)) for quarter in quarters) >= 8
    videos = {clip_id.split("@")[0] for clip_id in sample}
    assert len(videos) > TOKEN_CLIPS * 0.6


def test_few_clips_are_all_in_the_sample(latent_cache: BuildCache) -> None:
    features = choose_features(FeatureCache.open(latent_cache(with_tokens=True)), CROSS)
    ids = features.clips.clip_ids.to_pylist()
    assert token_sample(features, ids) == ids
    every = torch.cat([features.tokens([clip_id]).states[0] for clip_id in ids], dim=1).double()
    found = token_statistics(features.tokens([clip_id]).states[0] for clip_id in ids)
    torch.testing.assert_close(found.mean, every.mean(dim=1).float())
