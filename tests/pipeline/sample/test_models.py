"""The tiny models load as real ones do, look at their frames, and are the same for the same seed."""

import itertools

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoVideoProcessor,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    VJEPA2Model,
    VJEPA2VideoProcessor,
)

from thinkjepa.pipeline.sample.models import ENCODER_CROP_PX, SPECIAL_TOKENS, THINK_TOKENS, write_tiny_models

NUM_FRAMES = 16
FPS = 30.0
FRAME_STEP = 6


def moving_square(x0_px: int, *, step_px: int = 4) -> np.ndarray:
    """(16, 120, 160, 3) frames of a square over a textured background."""
    texture = np.random.default_rng(7).integers(40, 140, size=(12, 16, 3), dtype=np.uint8)
    frames = np.repeat(np.kron(texture, np.ones((10, 10, 1), dtype=np.uint8))[None], NUM_FRAMES, axis=0)
    for index, frame in enumerate(frames):
        left = x0_px + step_px * index
        frame[30:70, left : left + 40] = (220, 40, 60)
    return frames


@pytest.fixture(scope="module")
def thinker(tiny_models):
    return AutoModelForImageTextToText.from_pretrained(tiny_models / "thinker").eval()


@pytest.fixture(scope="module")
def processor(tiny_models):
    return AutoProcessor.from_pretrained(tiny_models / "thinker")


def video_prompt(processor, frames: np.ndarray):
    content = [{"type": "video"}, {"type": "text", "text": "Describe this video."}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    metadata = {
        "fps": FPS,
        "frames_indices": [FRAME_STEP * index for index in range(len(frames))],
        "total_num_frames": FRAME_STEP * len(frames),
    }
    return processor(
        text=[text],
        videos=[frames],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )


def answer(thinker, processor, frames: np.ndarray) -> str:
    inputs = video_prompt(processor, frames)
    ids = thinker.generate(
        **inputs, max_new_tokens=16, do_sample=False, temperature=None, top_k=None, top_p=None
    )
    new = ids[0, inputs["input_ids"].shape[1] :]
    assert len(new) == 16
    return processor.tokenizer.decode(new)


def test_thinker_is_a_qwen3_vl_with_deepstack(thinker, processor):
    assert isinstance(thinker, Qwen3VLForConditionalGeneration)
    assert isinstance(processor, Qwen3VLProcessor)
    vision, text = thinker.config.vision_config, thinker.config.text_config
    assert len(vision.deepstack_visual_indexes) == 3
    assert vision.out_hidden_size == text.hidden_size == 64
    assert text.num_hidden_layers == 6
    assert text.vocab_size == len(processor.tokenizer)


@pytest.mark.parametrize("token", [*SPECIAL_TOKENS, *THINK_TOKENS])
def test_special_tokens_are_one_token_each(processor, token):
    assert len(processor.tokenizer(token)["input_ids"]) == 1


@pytest.mark.parametrize(
    "text", ["Describe this video.", "two\nlines  and\ttabs", "Grüße, 世界 🙂", "<0.5 seconds>"]
)
def test_tokenizer_round_trips_any_text(processor, text):
    ids = processor.tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert processor.tokenizer.decode(ids) == text


def test_prompt_shows_every_frame_pair_and_opens_the_reasoning(processor):
    ids = video_prompt(processor, moving_square(5))["input_ids"][0].tolist()
    text = processor.tokenizer.decode(ids)
    assert ids.count(processor.video_token_id) == 8 * 20  # 16 frames in pairs, 160 x 128 px in squares of 32
    assert text.count(" seconds>") == 8
    assert "<0.1 seconds>" in text
    assert text.endswith("Describe this video.<|im_end|>\n<|im_start|>assistant\n<think>\n")


def test_image_and_video_processors_share_their_normalization(processor):
    image, video = processor.image_processor, processor.video_processor
    assert tuple(image.image_mean) == tuple(video.image_mean)
    assert tuple(image.image_std) == tuple(video.image_std)
    assert video.cap_pixels_per_frame is True


def test_thinker_answers_in_printable_ascii_and_depends_on_the_frames(thinker, processor):
    answers = [answer(thinker, processor, moving_square(x0_px)) for x0_px in (5, 40)]
    assert answers[0] != answers[1]
    assert all(text.isascii() and text.isprintable() for text in answers)
    assert all(len(set(text)) > 4 for text in answers)


def test_thinker_layers_change_the_stream_and_tell_frames_apart(thinker, processor):
    with torch.no_grad():
        states, others = (
            thinker(**video_prompt(processor, moving_square(x0_px)), output_hidden_states=True).hidden_states
            for x0_px in (5, 40)
        )
    assert all(torch.isfinite(state).all() for state in states)
    for before, after in itertools.pairwise(states):
        assert relative_distance(before, after) > 0.2
    for state, other in zip(states, others, strict=True):
        assert relative_distance(state, other) > 0.1


def test_encoder_loads_and_tells_frames_apart(tiny_models):
    encoder = VJEPA2Model.from_pretrained(tiny_models / "encoder").eval()
    processor = AutoVideoProcessor.from_pretrained(tiny_models / "encoder")
    assert isinstance(processor, VJEPA2VideoProcessor)
    assert processor.size["shortest_edge"] == 73

    latents = []
    for x0_px in (5, 40):
        frames = torch.from_numpy(moving_square(x0_px)).permute(0, 3, 1, 2)
        pixels = processor(frames, return_tensors="pt")["pixel_values_videos"]
        assert pixels.shape == (1, NUM_FRAMES, 3, ENCODER_CROP_PX, ENCODER_CROP_PX)
        with torch.no_grad():
            latents.append(encoder(pixels).last_hidden_state)
    assert latents[0].shape == (1, 8 * 4 * 4, 48)
    assert relative_distance(*latents) > 0.1
    steps = latents[0].unflatten(1, (8, 16))
    assert relative_distance(steps[:, :-1], steps[:, 1:]) > 0.05


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, tree_digest):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_tiny_models(tmp_path / name, seed=seed)
    first, again, other = (tree_digest(tmp_path / name) for name in "abc")
    assert first == again
    changed = {path for path in first if first[path] != other[path]}
    assert changed == {
        f"{model}/{file}" for model in ("encoder", "thinker") for file in ("README.md", "model.safetensors")
    }


def test_global_random_state_is_left_alone(tmp_path):
    before = torch.get_rng_state()
    write_tiny_models(tmp_path, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_folders_hold_safetensors_only_and_say_untrained(tiny_models):
    suffixes = {path.suffix for path in tiny_models.rglob("*") if path.is_file()}
    assert suffixes == {".jinja", ".json", ".md", ".safetensors"}
    for model in ("thinker", "encoder"):
        assert "Untrained" in (tiny_models / model / "README.md").read_text()


def relative_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / one.norm())
