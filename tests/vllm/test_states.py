"""The thinker's states through vLLM's engine, however it is asked, against those of transformers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.thinker.contract import Scene, Thought
from thinkjepa.stages.extract.thinker.hooks import HookedThinker
from thinkjepa.stages.extract.thinker.vllm.engine import EngineSpec, VllmEngine
from thinkjepa.stages.extract.thinker.vllm.thinker import VllmThinker

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

TOLERANCE = 1e-5
"""Of a layer's largest state, float32: states go up to 25 here."""

CHUNK_TOKENS = 64
"""A third of a prompt: every one goes through in three forward passes or more."""


@pytest.fixture(scope="module")
def scenes(make_scene: Callable[..., Scene]) -> list[Scene]:
    """Of three sizes, so that prompts of different lengths share a batch."""
    sizes = [(96, 128), (64, 64), (128, 96), (96, 128)]
    return [
        make_scene(seed, height=height, width=width, step_s=0.37 + 10 * seed)
        for seed, (height, width) in enumerate(sizes)
    ]


@pytest.fixture(scope="module")
def expected(make_thinker: Callable[..., VllmThinker], scenes: list[Scene]) -> list[Thought]:
    """What transformers gives, each scene by itself."""
    like = make_thinker()
    thinker = HookedThinker(like.folder, like.settings, dtype=like.dtype, device=like.device)
    thinker.load()
    return thinker.think(scenes)


def check(thoughts: Sequence[Thought], expected: Sequence[Thought]) -> None:
    for thought, wanted in zip(thoughts, expected, strict=True):
        assert thought.token_ids == wanted.token_ids
        assert thought.prompt_token_count == wanted.prompt_token_count
        assert torch.equal(thought.token_kind_S, wanted.token_kind_S)
        assert thought.text == wanted.text
        assert thought.hidden_LSD.shape == wanted.hidden_LSD.shape
        difference = (thought.hidden_LSD - wanted.hidden_LSD).abs().amax(dim=(1, 2))
        largest = wanted.hidden_LSD.abs().amax(dim=(1, 2))
        assert (difference <= TOLERANCE * largest).all(), (difference / largest).tolist()


def spec_of(thinker: VllmThinker, **options: object) -> EngineSpec:
    thinker.load_processor()
    return EngineSpec(
        python=thinker.vllm.python,
        options={**thinker.engine_options(), **options},
        layers=thinker.layers,
        max_new_tokens=thinker.settings.max_new_tokens,
        stop_ids=(),
        timeout_s=300,
        restarts=0,
    )


def test_mixed_lengths_in_one_batch_and_a_killed_engine_give_the_states_of_transformers(
    make_thinker: Callable[..., VllmThinker], scenes: list[Scene], expected: list[Thought]
) -> None:
    assert len({thought.prompt_token_count for thought in expected}) > 2
    thinker = make_thinker(vllm_restarts=1)
    thinker.load()
    engine = thinker._engine
    assert isinstance(engine, VllmEngine)
    assert engine._staging is not None
    try:
        check(thinker.think(scenes, batch_size=4), expected)
        assert {path.name for path in engine._staging.rglob("*") if path.is_file()} == {
            "log.txt",
            "frames.safetensors",
        }
        first, staging = engine.pid, engine._staging
        assert first is not None
        os.kill(first, signal.SIGKILL)
        check(thinker.think(scenes[:2], batch_size=4), expected[:2])
        assert engine.pid != first
        assert not staging.exists()

        engine.spec = replace(engine.spec, timeout_s=3)
        second, staging = engine.pid, engine._staging
        assert second is not None
        os.kill(second, signal.SIGSTOP)
        with pytest.raises(StageError, match=r"no answer from vllm for 3 s.*given up after 2 tries"):
            thinker.think(scenes[:1])
        assert not staging.exists()
        assert not Path(f"/proc/{second}").exists()
    finally:
        thinker.close()


@pytest.mark.parametrize(
    "options",
    [
        {"enable_prefix_caching": True},
        {"enable_prefix_caching": False, "max_num_batched_tokens": CHUNK_TOKENS, "max_num_seqs": 2},
    ],
    ids=["prefix caching", "chunked prefill"],
)
def test_how_the_engine_works_does_not_change_the_states(
    make_thinker: Callable[..., VllmThinker],
    scenes: list[Scene],
    expected: list[Thought],
    options: dict[str, object],
) -> None:
    thinker = make_thinker()
    with VllmEngine(spec_of(thinker, **options)) as engine:
        thinker._engine = engine
        thinker._stop_ids = frozenset()
        check(thinker.think(scenes, batch_size=4), expected)
        again = thinker.think([scenes[2], scenes[2], scenes[0]], batch_size=4)
        check(again, [expected[2], expected[2], expected[0]])
