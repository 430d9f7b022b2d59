"""One contract for thinkers of every family: what is captured, what it depends on, and what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import thinker_families
import torch
from torch import nn

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.models.costs import prompt_size
from thinkjepa.stages.extract.models.weights import ModelFolder, find_model
from thinkjepa.stages.extract.settings import ModelSettings
from thinkjepa.stages.extract.thinker.contract import KIND, TimedFrames
from thinkjepa.stages.extract.thinker.hooks import HookedThinker, find_decoder_layers

NEW_TOKENS = 4
DEEPSTACK_LAYERS = 3


@pytest.fixture(
    scope="module", params=["qwen3-vl", *thinker_families.FAMILIES, "qwen3-vl images", "qwen2.5-vl images"]
)
def thinker(request: Any, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> HookedThinker:
    family, _, frames_as = request.param.partition(" ")
    if family == "qwen3-vl":
        folder, layers = tiny_models / "thinker", "0,1,2,3,4,5,6"
    else:
        folder = thinker_families.write_family(family, tmp_path_factory.mktemp("family") / family)
        layers = "0,1,2,3,4"
    found = find_model(str(folder), revision="main", role="thinker")
    settings = ModelSettings(layers=layers, max_new_tokens=NEW_TOKENS, frames_as=frames_as or "auto")
    thinker = HookedThinker(found, settings, dtype="float32", device=torch.device("cpu"))
    thinker.load()
    return thinker


def random_frames(seed: int, *, height: int = 96, width: int = 128, num_frames: int = 8) -> TimedFrames:
    rng = np.random.default_rng(seed)
    frames = torch.from_numpy(rng.integers(0, 256, (num_frames, 3, height, width), dtype=np.uint8))
    return TimedFrames(frames, [0.1 + 0.37 * number for number in range(num_frames)])


def changed_at(frame: int, source: TimedFrames) -> TimedFrames:
    frames = source.frames.clone()
    frames[frame] = 255 - frames[frame]
    return TimedFrames(frames, source.times_s)


def test_states_are_what_enters_the_layers_and_leaves_the_last(thinker: HookedThinker) -> None:
    """Against transformers' own record, where the two mean the same: not between DeepStack's first layers."""
    frames = random_frames(0)
    output = thinker.hidden_states([frames])[0]
    inputs = dict(thinker.prompt(frames).inputs)
    with torch.inference_mode():
        recorded = thinker._model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
    prompt = output.hidden_LSD[:, : output.prompt_token_count]
    scale = prompt.abs().max()
    deepstack = hasattr(getattr(thinker._model.config, "vision_config", None), "deepstack_visual_indexes")
    last = len(thinker.layers) - 1
    for layer in [0, *range(DEEPSTACK_LAYERS + 1 if deepstack else 1, last)]:
        assert (prompt[layer] - recorded[layer][0]).abs().max() < 1e-5 * scale
    norm = thinker._model.get_decoder().norm
    with torch.inference_mode():
        assert (norm(prompt[last]) - recorded[last][0]).abs().max() < 1e-5 * recorded[last].abs().max()
    assert (prompt[last] - recorded[last][0]).abs().max() > 1e-2  # before the norm, not behind it


def test_prompt_and_generated_tokens_have_states_and_kinds(thinker: HookedThinker) -> None:
    frames = random_frames(1)
    output = thinker.hidden_states([frames])[0]
    prompt_ids = thinker.prompt(frames).inputs["input_ids"][0].tolist()
    assert list(output.token_ids[: output.prompt_token_count]) == prompt_ids
    assert len(output.token_ids) == len(prompt_ids) + NEW_TOKENS
    assert output.hidden_LSD.shape == (len(thinker.layers), len(output.token_ids) - 1, thinker.width)
    kinds = output.token_kind_S.tolist()
    size = prompt_size(thinker, thinker.prompt(frames))
    assert kinds.count(KIND["visual"]) == size.visual_tokens > 0
    assert size.num_patches >= size.visual_tokens
    assert set(kinds[len(prompt_ids) :]) <= {KIND["generated"], KIND["reasoning"]}


@pytest.mark.parametrize("frame", [0, 3, 7])
def test_every_frame_reaches_the_states(thinker: HookedThinker, frame: int) -> None:
    frames = random_frames(2)
    one, other = (thinker.hidden_states([item])[0] for item in (frames, changed_at(frame, frames)))
    assert one.token_ids[: one.prompt_token_count] == other.token_ids[: other.prompt_token_count]
    assert not torch.equal(one.hidden_LSD[-1], other.hidden_LSD[-1])


def test_tokens_before_a_changed_frame_do_not_change(thinker: HookedThinker) -> None:
    """Exactly 0 within a prompt, too: a decoder looks back only."""
    frames = random_frames(3)
    one, other = (thinker.hidden_states([item])[0] for item in (frames, changed_at(7, frames)))
    changed = (one.hidden_LSD != other.hidden_LSD).any(dim=2).any(dim=0)
    first = int(changed[: one.prompt_token_count].int().argmax())
    visual = (one.token_kind_S == KIND["visual"]).nonzero().flatten()
    pair = len(visual) // 4  # of frames, which Qwen's towers merge
    assert first >= int(visual[-pair])
    assert changed[first]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_neighbours_change_not_one_bit(thinker: HookedThinker, batch_size: int) -> None:
    clips = [random_frames(4), random_frames(5), random_frames(6, height=160)]
    together = thinker.hidden_states(clips, batch_size=batch_size)
    others = thinker.hidden_states(
        [random_frames(4), random_frames(7), random_frames(8)], batch_size=batch_size
    )
    assert torch.equal(together[0].hidden_LSD, others[0].hidden_LSD)
    assert together[0].token_ids == others[0].token_ids
    assert not torch.equal(together[1].hidden_LSD, others[1].hidden_LSD)


def test_the_batch_size_changes_no_more_than_rounding(thinker: HookedThinker) -> None:
    clips = [random_frames(9), random_frames(10), random_frames(11)]
    for one, three in zip(
        thinker.hidden_states(clips), thinker.hidden_states(clips, batch_size=3), strict=True
    ):
        assert one.token_ids == three.token_ids
        assert (one.hidden_LSD - three.hidden_LSD).abs().max() < 1e-5 * one.hidden_LSD.abs().max()


def test_frame_times_reach_the_model(thinker: HookedThinker) -> None:
    frames = random_frames(12)
    later = TimedFrames(frames.frames, [time_s + 100 for time_s in frames.times_s])
    slower = TimedFrames(frames.frames, [4 * time_s for time_s in frames.times_s])
    one, moved, stretched = (thinker.hidden_states([item])[0] for item in (frames, later, slower))
    told = [item for item in (moved, stretched) if item.token_ids != one.token_ids]
    assert told or not torch.equal(one.hidden_LSD, stretched.hidden_LSD)


class TwoDecoders(nn.Module):
    """A model that does not say which of two lists of layers is its decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.second = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.vision_blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))


def test_a_model_that_names_no_decoder_is_searched_for_one(tmp_path: Path) -> None:
    folder = ModelFolder("strange", tmp_path, revision="main")
    model = TwoDecoders()
    with pytest.raises(StageError, match=r"2 lists of that many .* first \(3\), second \(3\)"):
        find_decoder_layers(model, 3, folder)
    model.second.append(nn.Linear(2, 2))
    assert find_decoder_layers(model, 3, folder) is model.first
    with pytest.raises(StageError, match="has 5 decoder layers, and TwoDecoders has 0 lists"):
        find_decoder_layers(model, 5, folder)
