"""The trained encoder that comes with the package: whole, small, and the one whose figures its card tells."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import VJEPA2Model

from thinkjepa.pipeline import sample
from thinkjepa.stages.extract.encoder.base import VideoEncoder, open_encoder
from thinkjepa.stages.extract.models.weights import find_model

FOLDER = Path(sample.__file__).parent / "trained" / "encoder"

MOST_BYTES = 4_000_000


@pytest.fixture(scope="module")
def encoder() -> VideoEncoder:
    found = find_model(str(FOLDER), revision="main", role="encoder")
    opened = open_encoder(found, dtype="float32", device=torch.device("cpu"))
    opened.load()
    return opened


def moving_square(*, left_px: int) -> np.ndarray:
    """A grey table over which a light square moves for 16 frames."""
    video = np.full((16, 96, 96, 3), 110, np.uint8)
    for frame in range(16):
        video[frame, 36:60, left_px + 2 * frame : left_px + 2 * frame + 24] = (220, 180, 150)
    return video


def test_transformers_loads_every_weight_in_half_precision() -> None:
    _, report = VJEPA2Model.from_pretrained(FOLDER, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with safe_open(FOLDER / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MOST_BYTES


def test_it_takes_the_samples_frames_whole(encoder: VideoEncoder) -> None:
    assert encoder.framing == {"resize": None, "crop": {"height": 96, "width": 96}}
    assert (encoder.grid, encoder.tubelet, encoder.longest_window) == ((8, 8), 2, 20)


def test_latents_tell_where_something_moves(encoder: VideoEncoder) -> None:
    """Latents of two videos that differ in the place of a square differ most there."""
    windows = [encoder.preprocess(moving_square(left_px=left)) for left in (0, 40)]
    first, second = encoder.encode(windows)
    away = (first - second).norm(dim=-1)[0].view(8, 8)
    covered = torch.zeros(8, 8, dtype=torch.bool)
    covered[3:5, [0, 1, 3, 4, 5]] = True  # patches of 12 px; the first step is frames 0 and 1
    assert away[covered].mean() > 2 * away[~covered].mean()


def test_the_card_tells_figures_of_these_weights(encoder: VideoEncoder) -> None:
    check = json.loads((FOLDER / "check.json").read_text())
    assert check["weights"] == encoder.origin["weights"]
    card = (FOLDER / "README.md").read_text()
    for name, row in check["joints"].items():
        assert f"| {name} | {1000 * row['mean_m']:.1f} | {1000 * row['last_step_m']:.1f} |" in card
    assert ("not good enough" in card) == (not check["good_enough"])
