"""The thinker's states against an independent computation: an own loop over the decoder's layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from thinkjepa.cache import STREAMS, TOKEN_KINDS
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.encoder.base import open_encoder
from thinkjepa.stages.extract.models.weights import find_model
from thinkjepa.stages.extract.settings import ModelSettings, allowed_failures, parse_layers, spread_layers
from thinkjepa.stages.extract.thinker.base import until_stop
from thinkjepa.stages.extract.thinker.contract import (
    KIND,
    HiddenStates,
    TimedFrames,
    token_kinds,
)
from thinkjepa.stages.extract.thinker.hooks import HookedThinker
from thinkjepa.stages.extract.thinker.kept import pool_streams
from thinkjepa.stages.extract.thinker.prompting import clock_metadata

ALL_LAYERS = "0,1,2,3,4,5,6"


def load_thinker(models: Path, *, layers: str = ALL_LAYERS, **settings: Any) -> HookedThinker:
    folder = find_model(str(models / "thinker"), revision="main", role="thinker")
    thinker = HookedThinker(
        folder, ModelSettings(layers=layers, **settings), dtype="float32", device=torch.device("cpu")
    )
    thinker.load()
    return thinker


@pytest.fixture(scope="module")
def thinker(tiny_models: Path) -> HookedThinker:
    return load_thinker(tiny_models)


def random_frames(seed: int, *, height: int = 96, width: int = 128, num_frames: int = 8) -> TimedFrames:
    frames = torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (num_frames, 3, height, width), dtype=np.uint8)
    )
    return TimedFrames(frames, [0.1 + 0.37 * i for i in range(num_frames)])


@torch.inference_mode()
def states_by_own_loop(thinker: HookedThinker, frames: TimedFrames, output: HiddenStates) -> Tensor:
    """Inputs of each decoder layer and output of the last, `(layer + 1, token, dim)`, in one pass
    without a key-value cache, DeepStack features added between the layers by hand."""
    model = thinker._model.model
    inputs = thinker.prompt(frames).inputs
    generated = output.token_ids[output.prompt_token_count : -1]
    ids = torch.tensor([[*inputs["input_ids"][0].tolist(), *generated]])
    kinds = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(generated)))
    vision = model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    states = model.get_input_embeddings()(ids)
    visual = ids[0] == model.config.video_token_id
    states[0, visual] = torch.cat(vision.pooler_output)
    positions, _ = model.get_rope_index(ids, kinds, video_grid_thw=inputs["video_grid_thw"])
    rotation = model.language_model.rotary_emb(states, positions)
    length = ids.shape[1]
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    entering = []
    for depth, layer in enumerate(model.language_model.layers):
        entering.append(states[0].clone())
        states = layer(states, attention_mask=mask, position_embeddings=rotation)
        if depth + 1 == len(model.language_model.layers):
            break
        if depth < len(vision.deepstack_features):
            states = states.clone()
            states[0, visual] += torch.cat(list(vision.deepstack_features[depth]))
    return torch.stack([*entering, states[0]])


def test_states_equal_an_own_loop_at_every_layer(thinker: HookedThinker) -> None:
    frames = random_frames(0)
    output = thinker.hidden_states([frames])[0]
    expected = states_by_own_loop(thinker, frames, output)
    assert output.hidden_LSD.shape == expected.shape
    scale = expected.abs().max()
    assert (output.hidden_LSD - expected).abs().max() < 1e-5 * scale
    assert len(thinker._model.config.vision_config.deepstack_visual_indexes) >= 2


def test_deepstack_makes_layer_inputs_differ_from_layer_outputs(thinker: HookedThinker) -> None:
    """The control of the test above: without the DeepStack term it would fail at the first layers."""
    frames = random_frames(0)
    output = thinker.hidden_states([frames])[0]
    inputs = thinker.prompt(frames).inputs
    with torch.inference_mode():
        plain = thinker._model(**inputs, output_hidden_states=True).hidden_states
    prompt = output.hidden_LSD[:, : output.prompt_token_count]
    visual = output.token_kind_S[: output.prompt_token_count] == KIND["visual"]
    text_difference = (plain[1][0] - prompt[1])[~visual].abs().max()
    visual_difference = (plain[1][0] - prompt[1])[visual].abs().max()
    assert text_difference < 1e-4
    assert visual_difference > 1e-2


def test_only_the_chosen_layers_are_kept_in_order(tiny_models: Path, thinker: HookedThinker) -> None:
    some = load_thinker(tiny_models, layers="6,0,3")
    assert some.layers == (0, 3, 6)
    assert torch.equal(
        some.hidden_states([random_frames(1)])[0].hidden_LSD,
        thinker.hidden_states([random_frames(1)])[0].hidden_LSD[[0, 3, 6]],
    )


def test_n_generated_tokens_give_n_minus_1_states(tiny_models: Path) -> None:
    for number in (1, 2, 5):
        output = load_thinker(tiny_models, layers="3", max_new_tokens=number).hidden_states(
            [random_frames(2)]
        )[0]
        assert len(output.token_ids) - output.prompt_token_count == number
        assert output.hidden_LSD.shape[1] == output.prompt_token_count + number - 1
        pooled = pool_streams(
            output.hidden_LSD, output.token_kind_S, prompt_token_count=output.prompt_token_count
        )
        assert bool(pooled[:, STREAMS.index("generated")].any()) == (number > 1)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_states_depend_on_nothing_but_the_frames(thinker: HookedThinker, batch_size: int) -> None:
    """Neighbors of other lengths, other contents and in other numbers: not one bit changes."""
    clips = [
        random_frames(3),
        random_frames(4, height=160),
        random_frames(5, width=224),
        random_frames(6),
        random_frames(7),
    ]
    together = thinker.hidden_states(clips, batch_size=batch_size)
    assert len({output.hidden_LSD.shape[1] for output in together}) > 1
    for frames, output in zip(clips, together, strict=True):
        alone = thinker.hidden_states([frames], batch_size=batch_size)[0]
        assert alone.token_ids == output.token_ids
        assert torch.equal(alone.token_kind_S, output.token_kind_S)
        assert torch.equal(alone.hidden_LSD, output.hidden_LSD)
    other = thinker.hidden_states(
        [random_frames(3), random_frames(8), random_frames(9)], batch_size=batch_size
    )
    assert torch.equal(other[0].hidden_LSD, together[0].hidden_LSD)
    assert not torch.equal(other[1].hidden_LSD, together[3].hidden_LSD)


def test_the_batch_size_changes_no_more_than_rounding(thinker: HookedThinker) -> None:
    clips = [random_frames(3), random_frames(6), random_frames(7)]
    for one, three in zip(
        thinker.hidden_states(clips), thinker.hidden_states(clips, batch_size=3), strict=True
    ):
        assert one.token_ids == three.token_ids
        assert (one.hidden_LSD - three.hidden_LSD).abs().max() < 1e-5 * one.hidden_LSD.abs().max()


def test_every_given_frame_reaches_the_model_with_its_time(thinker: HookedThinker) -> None:
    frames = random_frames(9)
    inputs = thinker.prompt(frames).inputs
    assert inputs["video_grid_thw"][0, 0] == 8 // 2
    text = thinker._processor.tokenizer.decode(inputs["input_ids"][0])
    for pair in range(4):
        middle_s = (frames.times_s[2 * pair] + frames.times_s[2 * pair + 1]) / 2
        assert f"<{middle_s:.1f} seconds>" in text


def test_the_processors_clock_ends_with_the_last_frame() -> None:
    record = clock_metadata([1.5, 1.54, 1.9])
    assert record["frames_indices"] == [1500, 1540, 1900]
    assert record["total_num_frames"] == 400 + 360
    assert record["fps"] == 1000


def test_pooling_before_a_projection_equals_pooling_after_it(thinker: HookedThinker) -> None:
    output = thinker.hidden_states([random_frames(10)])[0]
    pooled = pool_streams(
        output.hidden_LSD, output.token_kind_S, prompt_token_count=output.prompt_token_count
    )
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 32, generator=generator, dtype=torch.float64) / 8
    projected = output.hidden_LSD.double() @ weight
    at = output.prompt_token_count
    visual = (output.token_kind_S == KIND["visual"]).nonzero().flatten()
    means = {
        "prompt": projected[:, :at],
        "visual": projected[:, visual],
        "text": projected[:, int(visual[-1]) + 1 : at],
        "last": projected[:, [at - 1]],
        "generated": projected[:, at:],
    }
    expected = torch.stack([means[stream].mean(dim=1) for stream in STREAMS], dim=1)
    assert (pooled.double() @ weight - expected).abs().max() < 1e-6


def test_kinds_mark_visual_text_reasoning_and_generated_tokens() -> None:
    def names(prompt: Sequence[int], generated: Sequence[int]) -> list[str]:
        kinds = token_kinds(prompt, generated, visual_ids=frozenset({7}), think_open=90, think_close=91)
        return [TOKEN_KINDS[kind - 1] for kind in kinds.tolist()]

    assert names([1, 7, 7, 2], [3, 4]) == ["text", "visual", "visual", "text", "generated"]
    assert names([1, 90], [3, 91, 4, 5]) == ["text", "text", "reasoning", "reasoning", "generated"]
    assert names([1, 90, 91], [3, 4]) == ["text", "text", "text", "generated"]
    assert names([1], [90, 3, 91, 4, 5]) == ["text", "reasoning", "reasoning", "reasoning", "generated"]


def test_the_stop_token_ends_a_clip_and_belongs_to_it() -> None:
    assert until_stop([5, 6, 2, 0, 0], frozenset({2})) == [5, 6, 2]
    assert until_stop([5, 6], frozenset({2})) == [5, 6]


def test_the_default_layers_are_the_papers_in_our_numbering() -> None:
    assert spread_layers(28) == (1, 5, 9, 13, 17, 21, 25, 28)
    assert spread_layers(6) == (1, 2, 3, 4, 5, 6)
    assert spread_layers(1) == (1,)


@pytest.mark.parametrize("text", ["7", "-1", "1,1", "one", "", "1,99"])
def test_layers_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(StageError, match="--layers"):
        parse_layers(text, num_layers=6)


def test_failures_are_allowed_by_count_or_percentage() -> None:
    assert allowed_failures("3", num_videos=10) == 3
    assert [allowed_failures("5%", num_videos=number) for number in (8, 20, 39)] == [1, 1, 2]
    assert allowed_failures("7%", num_videos=100) == 7
    assert allowed_failures("0%", num_videos=8) == 0
    for text in ("-1", "x", "101%", "1.5", "%", "nan%"):
        with pytest.raises(ValueError, match="--max-failures"):
            allowed_failures(text, num_videos=10)


def test_pickled_weights_are_never_loaded(tmp_path: Path, tiny_models: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text((tiny_models / "thinker" / "config.json").read_text())
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(StageError, match=r"no \.safetensors weights"):
        find_model(str(folder), revision="main", role="thinker")


def test_frames_are_preprocessed_each_by_itself(tiny_models: Path, thinker: HookedThinker) -> None:
    """They come in groups, so that 4K needs little memory: how they are grouped must not matter."""
    encoder = open_encoder(
        find_model(str(tiny_models / "encoder"), revision="main", role="encoder"),
        dtype="float32",
        device=torch.device("cpu"),
    )
    encoder.load_processor()
    frames = np.random.default_rng(0).integers(0, 256, (8, 500, 700, 3), dtype=np.uint8)
    for prepare in (thinker.preprocess, encoder.preprocess):
        apart = torch.cat([prepare(frames[:3]), prepare(frames[3:4]), prepare(frames[4:])])
        assert torch.equal(prepare(frames), apart)
    assert thinker.preprocess(frames).shape == (8, 3, 256, 358)
