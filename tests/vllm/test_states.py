"""The thinker's states through vLLM's engine, however it is asked, against those of transformers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from latent_cache import clip_row

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.thinker.contract import HiddenStates, TimedFrames
from thinkjepa.stages.extract.thinker.hooks import HookedThinker
from thinkjepa.stages.extract.thinker.kept import KIND, Kept
from thinkjepa.stages.extract.thinker.vllm.engine import Limits
from thinkjepa.stages.extract.thinker.vllm.process import VllmProcess
from thinkjepa.stages.extract.thinker.vllm.thinker import VllmThinker

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

TOLERANCE = 1e-5
"""Of a layer's largest state, float32: states go up to 25 here."""

CHUNK_TOKENS = 64
"""A third of a prompt: every one goes through in three forward passes or more."""


@pytest.fixture(scope="module")
def clips(make_frames: Callable[..., TimedFrames]) -> list[TimedFrames]:
    """Clips of three sizes, so that prompts of different lengths share a batch."""
    sizes = [(96, 128), (64, 64), (128, 96), (96, 128)]
    return [
        make_frames(seed, height=height, width=width, step_s=0.37 + 10 * seed)
        for seed, (height, width) in enumerate(sizes)
    ]


@pytest.fixture(scope="module")
def expected(make_thinker: Callable[..., VllmThinker], clips: list[TimedFrames]) -> list[HiddenStates]:
    """States by transformers, each clip by itself."""
    like = make_thinker()
    thinker = HookedThinker(like.folder, like.settings, dtype=like.dtype, device=like.device)
    thinker.load()
    return thinker.hidden_states(clips)


def check(outputs: Sequence[HiddenStates], expected: Sequence[HiddenStates]) -> None:
    for output, wanted in zip(outputs, expected, strict=True):
        assert output.token_ids == wanted.token_ids
        assert output.prompt_token_count == wanted.prompt_token_count
        assert torch.equal(output.token_kind_S, wanted.token_kind_S)
        assert output.text == wanted.text
        assert output.hidden_LSD.shape == wanted.hidden_LSD.shape
        difference = (output.hidden_LSD - wanted.hidden_LSD).abs().amax(dim=(1, 2))
        largest = wanted.hidden_LSD.abs().amax(dim=(1, 2))
        assert (difference <= TOLERANCE * largest).all(), (difference / largest).tolist()


def process_of(thinker: VllmThinker, **options: object) -> VllmProcess:
    thinker.load_processor()
    return VllmProcess(
        thinker.vllm.python,
        options={**thinker.engine_options(), **options},
        layers=thinker.layers,
        limits=Limits(max_new_tokens=thinker.settings.max_new_tokens, stop_ids=(), timeout_s=300, retries=0),
    )


def test_mixed_lengths_in_one_batch_and_a_killed_engine_give_the_states_of_transformers(
    make_thinker: Callable[..., VllmThinker], clips: list[TimedFrames], expected: list[HiddenStates]
) -> None:
    assert len({output.prompt_token_count for output in expected}) > 2
    thinker = make_thinker(vllm_restarts=1)
    thinker.load()
    engine = thinker._engine
    assert isinstance(engine, VllmProcess)
    assert engine._staging is not None
    try:
        check(thinker.hidden_states(clips, batch_size=4), expected)
        assert {path.name for path in engine._staging.rglob("*") if path.is_file()} == {
            "log.txt",
            "frames.safetensors",
        }
        first, staging = engine.pid, engine._staging
        assert first is not None
        os.kill(first, signal.SIGKILL)
        check(thinker.hidden_states(clips[:2], batch_size=4), expected[:2])
        assert engine.pid != first
        assert not staging.exists()

        engine.limits = replace(engine.limits, timeout_s=3)
        second, staging = engine.pid, engine._staging
        assert second is not None
        os.kill(second, signal.SIGSTOP)
        with pytest.raises(StageError, match=r"no answer from vllm for 3 s.*failed after 2 tries"):
            thinker.hidden_states(clips[:1])
        assert not staging.exists()
        assert not Path(f"/proc/{second}").exists()
    finally:
        thinker.close()


def test_slots_and_streams_are_means_over_the_states_of_vllm(
    make_thinker: Callable[..., VllmThinker], clips: list[TimedFrames]
) -> None:
    """By hand, of frames of 96 x 128: each place over the frame pairs, then each pair over its places."""
    rows, columns, pairs = 3, 4, 4
    thinker = make_thinker()
    thinker.load()
    try:
        outputs = thinker.hidden_states([clips[0], clips[3]], batch_size=2)
    finally:
        thinker.close()
    for output in outputs:
        hidden, at = output.hidden_LSD.double(), output.prompt_token_count
        visual = hidden[:, output.token_kind_S == KIND["visual"]].unflatten(1, (pairs, rows * columns))
        last = int((output.token_kind_S == KIND["visual"]).nonzero()[-1])
        wanted = {
            "slots": torch.cat([visual.mean(dim=1), visual.mean(dim=2)], dim=1),
            "text_tokens": hidden[:, last + 1 :],
            "pooled": torch.stack(
                [
                    hidden[:, :at].mean(dim=1),
                    visual.flatten(1, 2).mean(dim=1),
                    hidden[:, last + 1 : at].mean(dim=1),
                    hidden[:, at - 1],
                    hidden[:, at:].mean(dim=1),
                ],
                dim=1,
            ),
        }
        found = output.to_features(clip_row(0, 8, windows=1), Kept(slot_segments=1, text=True, tokens=False))
        assert found.slot_count == rows * columns + pairs
        for name, expected in wanted.items():
            difference = (found.arrays[name].double() - expected).abs().max()
            assert difference < 1e-6 * expected.abs().max(), name


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
    clips: list[TimedFrames],
    expected: list[HiddenStates],
    options: dict[str, object],
) -> None:
    thinker = make_thinker()
    with process_of(thinker, **options) as engine:
        thinker._engine = engine
        thinker._stop_ids = frozenset()
        check(thinker.hidden_states(clips, batch_size=4), expected)
        again = thinker.hidden_states([clips[2], clips[2], clips[0]], batch_size=4)
        check(again, [expected[2], expected[2], expected[0]])
