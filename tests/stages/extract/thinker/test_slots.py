"""The kept arrays of a thinker's states, against means over tokens that are computed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import thinker_families
import torch

from thinkjepa.cache import STREAMS, ClipFeatures, ClipRow
from thinkjepa.stages.data.framing import Box
from thinkjepa.stages.extract.models.weights import find_model
from thinkjepa.stages.extract.settings import ModelSettings
from thinkjepa.stages.extract.thinker.contract import HiddenStates, TimedFrames
from thinkjepa.stages.extract.thinker.hooks import HookedThinker
from thinkjepa.stages.extract.thinker.kept import KIND, Kept
from thinkjepa.stages.extract.thinker.layout import WHOLE, VisualLayout, part_of_frame

NEW_TOKENS = 4
NUM_FRAMES = 8
TIMES_S = tuple(0.1 + 0.37 * number for number in range(NUM_FRAMES))
SPLIT_S = 3.0
HEIGHT_PX, WIDTH_PX = 96, 128

GRIDS = {
    "qwen3-vl": (2, (3, 4)),
    "qwen3-vl-moe": (2, (3, 4)),
    "qwen2.5-vl": (2, (3, 5)),
    "smolvlm": (1, (4, 4)),
    "idefics3": (1, (4, 4)),
    "gemma3": (1, (4, 4)),
    "llava": (1, (4, 4)),
    "qwen3-vl images": (1, (3, 4)),
    "qwen2.5-vl images": (1, (3, 5)),
}
"""Frames that the tower merges, and the rows and columns of its tokens, of frames of 96 x 128 pixels."""

EVERYTHING = Kept(slot_segments=1, text=True, tokens=True)


@pytest.fixture(scope="module", params=GRIDS)
def family(request: Any) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def thinker(family: str, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> HookedThinker:
    name, _, frames_as = family.partition(" ")
    folder = tiny_models / "thinker"
    if name != "qwen3-vl":
        folder = thinker_families.write_family(name, tmp_path_factory.mktemp("family") / name)
    settings = ModelSettings(layers="0,2,4", max_new_tokens=NEW_TOKENS, frames_as=frames_as or "auto")
    found = find_model(str(folder), revision="main", role="thinker")
    thinker = HookedThinker(found, settings, dtype="float32", device=torch.device("cpu"))
    thinker.load()
    return thinker


def clip(*, split_time_s: float = SPLIT_S) -> ClipRow:
    return ClipRow(
        clip_id=f"{0:016x}@9",
        video="v.mp4",
        video_digest="0" * 64,
        thinker_sampling="",
        dense_sampling="",
        split_frame=9,
        split_time_s=split_time_s,
        thinker_frames=tuple(range(NUM_FRAMES)),
        thinker_times_s=TIMES_S,
        observed_frames=(0, 1),
        observed_times_s=(0.0, 0.1),
        future_frames=(),
        future_times_s=(),
    )


def frames(seed: int = 0) -> torch.Tensor:
    shape = (NUM_FRAMES, 3, HEIGHT_PX, WIDTH_PX)
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def states(thinker: HookedThinker, video: torch.Tensor) -> HiddenStates:
    return thinker.hidden_states([TimedFrames(video, TIMES_S)])[0]


def kept(output: HiddenStates, choice: Kept = EVERYTHING) -> ClipFeatures:
    return output.to_features(clip(), choice)


@pytest.fixture(scope="module")
def output(thinker: HookedThinker) -> HiddenStates:
    return states(thinker, frames())


def visual_states(output: HiddenStates) -> torch.Tensor:
    return output.hidden_LSD[:, output.token_kind_S == KIND["visual"]].double()


def test_slots_are_means_over_tokens(family: str, output: HiddenStates) -> None:
    """Each place over all groups of frames, then each group over its places."""
    merged, (rows, columns) = GRIDS[family]
    groups, places = NUM_FRAMES // merged, rows * columns
    visual = visual_states(output)
    assert visual.shape[1] == groups * places
    of_places = [visual[:, place::places].mean(dim=1) for place in range(places)]
    of_groups = [visual[:, places * n : places * (n + 1)].mean(dim=1) for n in range(groups)]
    found = kept(output)
    expected = torch.stack([*of_places, *of_groups], dim=1)
    assert found.slot_count == places + groups == found.arrays["slots"].shape[1]
    assert (found.arrays["slots"] - expected).abs().max() < 1e-6 * expected.abs().max()
    assert found.arrays["slots"].dtype == output.hidden_LSD.dtype


def test_segments_average_places_over_parts_of_the_history(family: str, output: HiddenStates) -> None:
    merged, (rows, columns) = GRIDS[family]
    groups, places = NUM_FRAMES // merged, rows * columns
    visual = visual_states(output).unflatten(1, (groups, places))
    found = kept(output, replace(EVERYTHING, slot_segments=2))
    halves = torch.cat([visual[:, : groups // 2].mean(dim=1), visual[:, groups // 2 :].mean(dim=1)], dim=1)
    slots = found.arrays["slots"]
    assert (slots[:, : 2 * places] - halves).abs().max() < 1e-6 * halves.abs().max()
    assert found.slot_count == 2 * places + groups
    first, last = NUM_FRAMES // 2 - 1, NUM_FRAMES - 1
    middles = [(TIMES_S[0] + TIMES_S[first]) / 2, (TIMES_S[first + 1] + TIMES_S[last]) / 2]
    times = found.arrays["slot_position"][: 2 * places, 0]
    assert times.tolist() == pytest.approx([SPLIT_S - middle for middle in middles for _ in range(places)])
    most = kept(output, replace(EVERYTHING, slot_segments=99))
    assert most.slot_count == groups * places + groups
    assert torch.equal(most.arrays["slots"][:, : groups * places].double(), visual_states(output))


def test_positions_tell_the_time_before_the_split_and_the_place_in_the_frame(
    family: str, output: HiddenStates
) -> None:
    merged, (rows, columns) = GRIDS[family]
    places, groups = rows * columns, NUM_FRAMES // merged
    positions = kept(output).arrays["slot_position"]
    of_places, of_groups = positions[:places], positions[places:]
    middle, span = (TIMES_S[0] + TIMES_S[-1]) / 2, TIMES_S[-1] - TIMES_S[0]
    assert of_places[:, 0].tolist() == pytest.approx([SPLIT_S - middle] * places)
    assert of_places[:, 1].tolist() == pytest.approx([span] * places)
    centers = [
        ((row + 0.5) / rows, (column + 0.5) / columns) for row in range(rows) for column in range(columns)
    ]
    assert of_places[:, 2].tolist() == pytest.approx([height for height, _ in centers])
    assert of_places[:, 3].tolist() == pytest.approx([width for _, width in centers])
    ends = [(TIMES_S[merged * n], TIMES_S[merged * n + merged - 1]) for n in range(groups)]
    assert of_groups[:, 0].tolist() == pytest.approx([SPLIT_S - (a + b) / 2 for a, b in ends])
    assert of_groups[:, 1].tolist() == pytest.approx([b - a for a, b in ends])
    assert of_groups[:, 2:].isnan().all()


def test_tokens_have_positions_of_their_own(family: str, output: HiddenStates) -> None:
    """The slots' positions are their means. Text has no place, and the time of the split."""
    rows, columns = GRIDS[family][1]
    places = rows * columns
    arrays = kept(output).arrays
    is_visual = output.token_kind_S == KIND["visual"]
    visual = arrays["token_position"][is_visual].double().unflatten(0, (-1, places))
    assert torch.allclose(visual[:, :, 2:].mean(dim=0), arrays["slot_position"][:places, 2:].double())
    assert torch.allclose(visual[:, :, :2].mean(dim=1), arrays["slot_position"][places:, :2].double())
    text = arrays["token_position"][~is_visual]
    assert not text[:, :2].any()
    assert text[:, 2:].isnan().all()


def test_text_tokens_are_those_behind_the_frames_and_the_generated(output: HiddenStates) -> None:
    found = kept(output)
    last = int((output.token_kind_S == KIND["visual"]).nonzero()[-1])
    assert found.text_count == len(output.token_kind_S) - last - 1 > NEW_TOKENS
    assert torch.equal(found.arrays["text_tokens"], output.hidden_LSD[:, last + 1 :])
    assert torch.equal(found.arrays["text_kind"], output.token_kind_S[last + 1 :])
    assert KIND["visual"] not in found.arrays["text_kind"]


def test_streams_are_means_of_their_tokens(output: HiddenStates) -> None:
    at, visual = output.prompt_token_count, (output.token_kind_S == KIND["visual"]).nonzero().flatten()
    hidden = output.hidden_LSD.double()
    expected = {
        "prompt": hidden[:, :at].mean(dim=1),
        "visual": hidden[:, visual].mean(dim=1),
        "text": hidden[:, int(visual[-1]) + 1 : at].mean(dim=1),
        "last": hidden[:, at - 1],
        "generated": hidden[:, at:].mean(dim=1),
    }
    pooled = kept(output).arrays["pooled"]
    for index, stream in enumerate(STREAMS):
        scale = expected[stream].abs().max()
        assert (pooled[:, index] - expected[stream]).abs().max() < 1e-6 * scale
    assert output.to_features(clip(), Kept(0, text=False, tokens=False)).arrays.keys() == {"pooled"}


def test_a_changed_place_changes_its_slot_most(family: str, thinker: HookedThinker) -> None:
    """The grid is the picture's: at layer 0 (embeddings), where only the vision tower mixes places."""
    _, (rows, columns) = GRIDS[family]
    video = torch.full_like(frames(), 128)
    marked = video.clone()
    top, left = HEIGHT_PX * (rows - 1) // rows, 0
    marked[:, :, top:, left : WIDTH_PX // columns] = frames(1)[:, :, top:, left : WIDTH_PX // columns]
    plain, other = (kept(states(thinker, item)).arrays["slots"][0] for item in (video, marked))
    changed = (other - plain).norm(dim=1)[: rows * columns].unflatten(0, (rows, columns))
    assert int(changed.argmax()) == (rows - 1) * columns


def test_a_cut_view_is_undone_by_the_positions() -> None:
    view = part_of_frame(Box(0.25, 0.0, 0.5, 1.0), Box(0.0, 0.5, 1.0, 0.5))
    layout = VisualLayout((4,), ((0.0, 1.0),), (2, 2), view)
    places = layout.slot_positions(2.0, segments=1)[:4, 2:]
    assert places.tolist() == [[0.625, 0.375], [0.625, 0.625], [0.875, 0.375], [0.875, 0.625]]


def test_without_a_grid_there_is_one_slot_a_frame() -> None:
    layout = VisualLayout((3, 4), ((0.0, 0.0), (0.5, 0.5)), None, WHOLE)
    states_LND = torch.arange(14.0).reshape(1, 7, 2)
    slots = layout.slots(states_LND, segments=3)
    assert torch.equal(slots[0], torch.stack([states_LND[0, :3].mean(dim=0), states_LND[0, 3:].mean(dim=0)]))
    positions = layout.slot_positions(1.0, segments=3)
    assert positions[:, 0].tolist() == [1.0, 0.5]
    assert positions[:, 2:].isnan().all()
    assert layout.num_slots(3) == 2
