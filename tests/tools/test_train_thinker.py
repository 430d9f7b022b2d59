"""The thinker's words, examples and training, on pictures that are made here; drawing only where mujoco
is."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hands.generate import RenderError, check_renderable
from hands.plan import CONDITIONS, HELD_OUT_PAIRS, PLACES
from sample_models.thinker.batches import Collator, Example, ExampleMaker, card, patches_of, without_card
from sample_models.thinker.model import MAX_TOKENS_PER_FRAME, new_model, new_processor
from sample_models.thinker.sights import Drawing, Sights, draw_sights
from sample_models.thinker.training import Training, attention_mask, loss_of, train
from sample_models.thinker.words import Sight, cell_of, right_parts

from thinkjepa.cache import ThinkJepaError
from thinkjepa.stages.extract.thinker.contract import TimedFrames
from thinkjepa.stages.extract.thinker.prompting import choose_prompting

TRAIN_THINKER = Path(__file__).parents[2] / "tools" / "train_thinker"

SIZE_PX = 96

SIGHT = Sight(
    names=("red ball", "blue cup", "green can"),
    things=((0.71, 0.32), (0.15, 0.44), (0.49, 0.2)),
    pads=((0.2, 0.6), (0.5, 0.5), (0.8, 0.1)),
    place=2,
    hand=(0.85, 0.97),
)

CARD = (slice(60, 80), slice(20, 60))


def made(sight: Sight, *, color: int, background: int) -> np.ndarray:
    """Frames `(condition, 8, 96, 96, 3)`: a card in frames 2 and 3, or in the last two, and a white neutral
    one."""
    frames = np.full((3, 8, SIZE_PX, SIZE_PX, 3), background, dtype=np.uint8)
    frames[CONDITIONS.index("cue"), 2:4, *CARD] = color
    frames[CONDITIONS.index("no-cue"), 2:4, *CARD] = 255
    frames[CONDITIONS.index("late-cue"), 6:8, *CARD] = color
    return frames


def two_episodes() -> Sights:
    other = replace(SIGHT, names=("blue ball", "red can", "green box"), place=0)
    frames = np.stack([made(SIGHT, color=10, background=90), made(other, color=20, background=120)])
    return Sights(frames, [tuple(0.2 * step for step in range(8))] * 2, [SIGHT, other])


@pytest.fixture(scope="module")
def processor():
    return new_processor()


@pytest.fixture
def model(processor):
    return new_model(processor.tokenizer, width=64, vision_width=32, seed=1)


def examples(count: int, *, one_pair: bool = True) -> list[Example]:
    rng = np.random.default_rng(0)
    maker = ExampleMaker(two_episodes())
    return [maker.draw(rng, one_pair=one_pair) for _ in range(count)]


def test_an_answer_tells_the_plan_first_and_then_everything_from_left_to_right():
    assert SIGHT.answer(told=True) == (
        "red ball,73 to right pad,81 hand,89. things blue cup,14 green can,42 red ball,73; pads 26 55 81."
    )
    assert SIGHT.answer(told=False).startswith("card tells nothing, hand,89. things blue cup,14")


def test_the_first_sentence_takes_the_tokens_that_are_generated_by_default(processor):
    assert len(processor.tokenizer(SIGHT.first_sentence(told=True))["input_ids"]) == 16


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("red ball,73 to right pad,81 hand,89.", set()),
        ("red ball,62 to right pad,90 hand,00.", set()),
        ("red cup,73 to right pad,81 hand,89.", {"answer", "kind"}),
        ("blue ball,14 to right pad,81 hand,89.", {"answer", "color", "thing_cell"}),
        ("red ball,73 to left pad,26 hand,89.", {"answer", "place", "pad_cell"}),
        ("card tells nothing, hand,89.", {"answer", "color", "kind", "place", "thing_cell", "pad_cell"}),
    ],
)
def test_parts_of_an_answer_are_judged_by_themselves(said, wrong):
    parts = right_parts(said, SIGHT, told=True)
    assert {name for name, right in parts.items() if not right} == wrong


def test_without_a_telling_card_only_that_is_right():
    assert right_parts("card tells nothing, hand", SIGHT, told=False) == {"answer": True}
    assert right_parts("red ball,73 to right pad,81", SIGHT, told=False) == {"answer": False}


def test_points_outside_are_in_the_nearest_cell_and_move_with_the_picture():
    assert cell_of((-0.2, 1.3)) == "09"
    moved = SIGHT.moved(0.1, -0.1)
    assert (cell_of(moved.things[0]), cell_of(moved.hand)) == ("82", "98")
    assert Sight.from_json(json.loads(json.dumps(moved.to_json()))) == moved


@pytest.mark.parametrize("condition", ["cue", "late-cue"])
def test_a_card_is_found_and_taken_away(condition):
    episode = made(SIGHT, color=10, background=90)
    assert (without_card(episode) == 90).all()
    shown, mask = card(episode, condition)
    frames = [2, 3] if condition == "cue" else [6, 7]
    assert mask.sum() == 2 * 20 * 40
    assert mask[frames, *CARD].all()
    assert (shown[mask[..., 0]] == 10).all()


def test_examples_tell_what_their_card_shows(monkeypatch):
    """The color of a card, 10 or 20 here, tells which of a table's things is first, and the place is its
    own."""
    monkeypatch.setattr("sample_models.thinker.batches.BRIGHTNESS", (1.0, 1.0))
    monkeypatch.setattr("sample_models.thinker.batches.COMPRESSED", 0.0)
    pasted = 0
    for example in examples(60, one_pair=False) + examples(60):
        cards = {color for color in (10, 20) if (example.frames == color).all(axis=-1).any()}
        assert example.told == bool(cards)
        if example.told:
            color, place = ("red", 2) if cards == {10} else ("blue", 0)
            assert example.sight.names[0].startswith(color)
            assert example.sight.place == place
            background = int(example.frames[0, 0, 0, 0])
            own = {90: SIGHT.names, 120: ("blue ball", "red can", "green box")}[background]
            assert sorted(example.sight.names) == sorted(own)
            pasted += (background == 90) != (cards == {10})
    assert pasted > 10


def test_a_batch_is_what_extraction_gives_the_model(processor):
    made_of = examples(3, one_pair=False)
    batch = Collator(processor).batch(made_of)
    prompting = choose_prompting(processor, "Describe this video.", model="thinker", frames_as="auto")
    for number, example in enumerate(made_of):
        inputs = prompting.inputs(TimedFrames(torch.from_numpy(example.frames), example.times_s))
        assert inputs["video_grid_thw"].tolist() == batch.grid[number : number + 1].tolist() == [[4, 12, 12]]
        assert torch.equal(inputs["input_ids"][0], batch.input_ids[number, : batch.prompt_length])
        own = batch.pixels.unflatten(0, (3, -1))[number]
        torch.testing.assert_close(own, inputs["pixel_values_videos"], atol=1e-6, rtol=0)


def test_wrong_colors_are_heard_and_true_ones_wanted(processor):
    made_of = examples(24)
    collator = Collator(processor)
    clean, batch = collator.batch(made_of), collator.batch(made_of, np.random.default_rng(0))
    assert torch.equal(batch.input_ids, clean.input_ids)
    assert torch.equal(clean.heard_ids, clean.input_ids)
    rows, places = (batch.heard_ids != batch.input_ids).nonzero(as_tuple=True)
    assert set(places.tolist()) == {batch.prompt_length}
    assert all(made_of[row].told for row in rows)
    assert 0.2 < len(rows) / sum(example.told for example in made_of) < 0.7


def test_frames_of_another_size_have_as_many_tokens(processor):
    prompting = choose_prompting(processor, "Describe this video.", model="thinker", frames_as="auto")
    frames = torch.zeros(8, 240, 320, 3, dtype=torch.uint8)
    inputs = prompting.inputs(TimedFrames(frames, [0.1 * step for step in range(8)]))
    time, rows, columns = inputs["video_grid_thw"][0].tolist()
    assert time == 4
    assert rows * columns // 4 <= MAX_TOKENS_PER_FRAME


def test_prompts_of_unequal_length_are_refused(processor):
    one, other = examples(2)
    with pytest.raises(ValueError, match="equally many digits"):
        Collator(processor).batch([one, replace(other, times_s=(9.8, 10.4))])


def test_patches_that_are_merged_follow_one_another():
    frames = torch.zeros(1, 2, 32, 32, 3, dtype=torch.uint8)
    frames[0, :, 8:16, 24:32] = 255  # second row, last column of 4 x 4 patches: last of the second block
    bright = patches_of(frames, patch=8, merge=2).amax(dim=1) > 0
    assert bright.nonzero().flatten().tolist() == [7]


def test_answers_through_the_text_see_no_frame(processor):
    batch = Collator(processor).batch(examples(2))
    mask = attention_mask(batch.token_types == 2, batch.prompt_length, torch.tensor([True, False]))
    visual = (batch.token_types[0] == 2).nonzero().flatten()
    last = int(visual[-1])
    assert not mask[0, 0, batch.prompt_length :, int(visual[0]) : last + 1].any()
    assert mask[0, 0, batch.prompt_length - 1, : batch.prompt_length].all()
    assert mask[1, 0, -1].all()
    assert not mask[:, 0].triu(1).any()


def test_only_the_first_sentence_is_taught_through_the_text(processor, model):
    batch = Collator(processor).batch(examples(2))
    through = torch.tensor([True, True])
    loss, _, _ = loss_of(model, batch, through)
    changed = batch.input_ids.clone()
    for row, length in enumerate(batch.sentence_length.tolist()):
        changed[row, batch.prompt_length + length + 1 :] = 5
    torch.testing.assert_close(loss_of(model, replace(batch, input_ids=changed), through)[0], loss)
    assert loss_of(model, replace(batch, input_ids=changed), ~through)[0] != loss


def weights_after(processor, settings: Training, **options) -> dict[str, torch.Tensor]:
    model = new_model(processor.tokenizer, width=64, vision_width=32, seed=1)
    steps = train(model, Collator(processor), ExampleMaker(two_episodes()), settings, **options)
    return {**{"losses": torch.tensor([step.loss for step in steps])}, **model.state_dict()}


def test_training_learns_and_is_the_same_for_the_same_seed(processor):
    settings = Training(steps=12, batch_size=4, learning_rate=3e-3, seed=3, one_pair=1.0)
    one, again = weights_after(processor, settings), weights_after(processor, settings)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert one["losses"][-1] < 0.7 * one["losses"][0]


def test_an_interrupted_training_continues_to_the_same_weights(processor, tmp_path):
    settings = Training(steps=6, batch_size=2, learning_rate=1e-3, seed=3, one_pair=0.5)
    whole = weights_after(processor, settings)
    state = tmp_path / "state.safetensors"
    model = new_model(processor.tokenizer, width=64, vision_width=32, seed=1)
    steps = train(
        model, Collator(processor), ExampleMaker(two_episodes()), settings, state_file=state, save_every=4
    )
    for step in steps:
        if step.number == 5:
            break
    rest = weights_after(processor, settings, state_file=state)
    assert len(rest["losses"]) == 2
    assert all(torch.equal(whole[name], rest[name]) for name in whole if name != "losses")
    other = weights_after(processor, replace(settings, seed=4), state_file=state)
    assert len(other["losses"]) == 6


def test_drawing_continues_and_is_refused_for_other_settings(tmp_path, renderable):
    folder, drawing = tmp_path / "drawn", Drawing(seed=5, num_episodes=3, pairs="seen")
    drawn = draw_sights(folder, drawing, workers=1)
    frames, sights = np.array(drawn.frames), drawn.sights
    assert frames.shape == (3, 3, 8, SIZE_PX, SIZE_PX, 3)
    assert all(time_s == sorted(time_s) for time_s in map(list, drawn.times_s))
    assert not {(sight.names[0].split()[0], PLACES[sight.place]) for sight in sights} & HELD_OUT_PAIRS
    for episode in frames:
        _, mask = card(episode, "cue")
        assert 0.02 < mask[mask.any(axis=(1, 2, 3))].mean() < 0.2
        assert not mask[-1].any()
        assert card(episode, "late-cue")[1][-1].any()

    lines = (folder / "sights.jsonl").read_text().splitlines(keepends=True)
    (folder / "sights.jsonl").write_text(lines[0] + lines[1][:20])
    again = draw_sights(folder, drawing, workers=1)
    assert again.sights == sights
    assert np.array_equal(again.frames, frames)
    with pytest.raises(ThinkJepaError, match="other settings"):
        draw_sights(folder, replace(drawing, seed=6), workers=1)


@pytest.fixture(scope="module")
def renderable():
    try:
        check_renderable(size_px=SIZE_PX)
    except RenderError as error:
        pytest.skip(str(error))


def test_the_command_trains_a_model_that_transformers_load(tmp_path, renderable, processor):
    out = tmp_path / "thinker"
    options = "--episodes 2 --steps 3 --batch-size 2 --width 64 --vision-width 32 --workers 1 --json"
    result = subprocess.run(
        [TRAIN_THINKER, out, "--data", tmp_path / "data", *options.split()],
        check=True,
        capture_output=True,
        text=True,
    )
    record = json.loads(result.stdout)
    assert (record["steps"], record["episodes"], record["data_seed"]) == (3, 2, 101)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(out)
    assert model.dtype == torch.float16
    assert len(AutoProcessor.from_pretrained(out).tokenizer) == len(processor.tokenizer)
    card_text = (out / "README.md").read_text()
    assert "2 episodes of seed 101" in " ".join(card_text.split())
    assert not list((tmp_path / "data").glob("*.safetensors"))
