"""The trained thinker that comes with the package loads as real ones do, and tells what a card has told."""

import json
from importlib.resources import files
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen3VLForConditionalGeneration

from thinkjepa.pipeline.sample.episodes import POSES_FILE, read_archive
from thinkjepa.stages.data.sampling import history_frames
from thinkjepa.stages.extract.settings import ModelSettings
from thinkjepa.stages.extract.thinker.contract import TimedFrames
from thinkjepa.stages.extract.thinker.prompting import choose_prompting

SAMPLE = Path(str(files("thinkjepa.pipeline.sample")))
THINKER, HANDS = SAMPLE / "trained" / "thinker", SAMPLE / "hands"

NUM_EPISODES = 12

pytestmark = pytest.mark.skipif(not THINKER.is_dir(), reason="this checkout holds no trained thinker")


@pytest.fixture(scope="module")
def thinker() -> Qwen3VLForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(THINKER, dtype=torch.float32).eval()


def test_it_is_a_small_qwen3_vl_in_half_precision(thinker):
    assert isinstance(thinker, Qwen3VLForConditionalGeneration)
    assert sum(value.numel() for value in thinker.parameters()) <= 8e6
    assert {value.dtype for value in load_file(THINKER / "model.safetensors").values()} == {torch.float16}
    assert sum(path.stat().st_size for path in THINKER.iterdir()) <= 8e6


def test_its_model_card_says_what_was_measured():
    check = json.loads((THINKER / "check.json").read_text())
    text = (THINKER / "README.md").read_text()
    for condition in ("cue", "late-cue", "no-cue"):
        assert f"{check['answers'][condition]['answer']:.1%}" in text
    assert ("not good enough" in text) == (not check["good_enough"])


def test_it_tells_what_the_cards_of_shipped_episodes_have_told(thinker):
    """Most colors and places, from decoded videos that are none of its training's."""
    processor = AutoProcessor.from_pretrained(THINKER)
    settings = ModelSettings()
    prompting = choose_prompting(processor, settings.prompt, model="thinker", frames_as="auto")
    episodes = [item for item in read_archive(HANDS / POSES_FILE)[1] if item.facts.condition == "cue"]
    right = []
    for episode in episodes[:NUM_EPISODES]:
        facts = episode.facts
        with av.open(HANDS / facts.video) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        times_s = np.arange(len(frames)) / facts.fps
        chosen = history_frames(times_s, facts.split_frame, num_frames=8)
        inputs = prompting.inputs(TimedFrames(torch.from_numpy(frames[chosen]), times_s[chosen].tolist()))
        with torch.inference_mode():
            ids = thinker.generate(**inputs, max_new_tokens=settings.max_new_tokens, do_sample=False)
        said = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])
        right += [said.startswith(facts.object.split()[0]), f" to {facts.place} pad" in said]
    assert np.mean(right) > 0.75
