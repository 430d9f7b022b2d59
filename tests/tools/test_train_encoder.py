"""Training of the sample's V-JEPA 2: what its parts see, what it repeats, and what its check measures."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_models.encoder.check import Clips, Parts, effective_rank, joints_of, read_joints
from sample_models.encoder.episodes import Drawing, DrawnEpisode, claim, drawn_frames
from sample_models.encoder.files import open_model, open_untrained, training_record, write_check, write_model
from sample_models.encoder.training import (
    MEAN,
    STD,
    WINDOWS,
    Learner,
    Training,
    changes,
    encode,
    new_model,
    patched,
    predict,
    scaled,
    train,
    windows_of,
)
from sample_models.encoder.tubes import LONG_RANGE, SHORT_RANGE, divide
from sample_models.linear_readout import share_read_right

from thinkjepa.cache import ThinkJepaError

TRAIN_ENCODER = Path(__file__).parents[2] / "tools" / "train_encoder"

TRAINING = Training(steps=3, batch_size=1, learning_rate=1e-3, pixel_weight=1.0, seed=4)


def small_model(seed: int = 0):
    return new_model(width=12, depth=1, heads=2, seed=seed)


def pictures(num_frames: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, 96, 96, 3), dtype=np.uint8)


def patches_of(video: np.ndarray) -> torch.Tensor:
    return scaled(patched(torch.from_numpy(video[None]), tubelet=2, patch=12))


@pytest.mark.parametrize("num_frames", WINDOWS)
@torch.no_grad()
def test_whole_windows_are_encoded_as_transformers_encodes_them(num_frames):
    model, video = small_model(), pictures(num_frames)
    pixels = (torch.from_numpy(video).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    wanted = model.get_vision_features(pixels.permute(0, 3, 1, 2)[None])
    torch.testing.assert_close(encode(model.encoder, patches_of(video)), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("blocks", [SHORT_RANGE, LONG_RANGE])
def test_a_division_has_every_token_at_most_once_and_the_same_patches_in_each_step(blocks):
    division = divide(np.random.default_rng(0), blocks, num_windows=6, num_steps=3, side=8, most=16)
    for context, target in zip(division.context, division.target, strict=True):
        assert len({*context.tolist(), *target.tolist()}) == len(context) + len(target)
        for tokens in (context, target):
            assert tokens.tolist() == sorted(tokens.tolist())
            steps = tokens.view(3, -1)
            torch.testing.assert_close(steps % 64, (steps % 64)[:1].expand_as(steps))
            torch.testing.assert_close(steps // 64, torch.arange(3)[:, None].expand_as(steps))
        assert len(target) == 3 * 16


@torch.no_grad()
def test_context_and_prediction_know_nothing_of_masked_tubes():
    """Other pixels in all masked tubes: a difference of exactly zero."""
    model, video = small_model(), pictures(8)
    division = divide(np.random.default_rng(1), SHORT_RANGE, num_windows=1, num_steps=4, side=8, most=64)
    other = video.copy()
    for patch in {int(token) % 64 for token in division.target[0]}:
        row, column = divmod(patch, 8)
        region = np.s_[:, 12 * row : 12 * row + 12, 12 * column : 12 * column + 12]
        other[region] = 255 - other[region]
    found = []
    for item in (video, other):
        context = encode(model.encoder, patches_of(item), kept=division.context)
        found.append((context, predict(model.predictor, context, division)))
    assert (encode(model.encoder, patches_of(video)) != encode(model.encoder, patches_of(other))).any()
    for before, after in zip(*found, strict=True):
        assert (before - after).abs().max() == 0


def test_changes_are_where_something_moves_and_nowhere_else():
    still = np.full((8, 96, 96, 3), 90, np.uint8)
    moving = still.copy()
    for frame in range(8):
        moving[frame, 12:24, 12 * frame : 12 * frame + 4] = 200  # one square of patch (1, frame)
    learner = Learner(small_model(), seed=0)
    values = learner.decoded_targets(patches_of(moving))[..., 54:].view(4, 64, 18)
    assert learner.decoded_targets(patches_of(still))[..., 54:].abs().max() == 0
    changed = values.view(4, 8, 8, 2, 3, 3)
    for frame in range(8):
        step, half = divmod(frame, 2)
        assert (changed[step, 1, frame, half, :, 0] > 1).all()
        changed[step, 1, frame, half, :, 0] = 0
    assert changed.abs().max() < 1e-5


def test_changes_of_a_window_are_the_distance_from_the_median():
    values = torch.rand(1, 4 * 64, 54)
    found = changes(values, num_patches=64, tubelet=2).view(4, 64, 2, 9)
    frames = values.view(4, 64, 3, 2, 9).permute(0, 3, 1, 2, 4).reshape(8, 64, 3, 9)
    away = (frames - frames.median(dim=0).values).abs().mean(dim=2)
    torch.testing.assert_close(found, away.view(4, 2, 64, 9).transpose(1, 2))


def trained(seed: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    learner = Learner(small_model(), seed=0)
    steps = list(train(learner, [pictures(20), pictures(30, seed=1)], replace(TRAINING, seed=seed)))
    return [step.latent_error for step in steps], learner.averaged().state_dict()


def test_the_same_seed_gives_the_same_weights_and_touches_no_global_randomness():
    state = torch.get_rng_state()
    (errors, weights), (again, same), (_, others) = (trained(seed) for seed in (4, 4, 5))
    assert errors == again
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert any(not torch.equal(weights[name], others[name]) for name in weights)
    assert torch.equal(state, torch.get_rng_state())


def test_what_is_kept_is_the_average_that_follows_the_encoder():
    learner = Learner(small_model(), seed=0)
    before = learner.target.layer[0].mlp.fc1.weight.clone()
    with torch.no_grad():
        learner.encoder.layer[0].mlp.fc1.weight.add_(1)
    learner.follow(0.9)
    kept = learner.averaged().encoder.layer[0].mlp.fc1.weight
    torch.testing.assert_close(kept, before + 0.1)


def test_windows_are_neighbouring_frames_of_one_episode():
    episodes = [np.arange(first, first + 20, dtype=np.uint8).reshape(20, 1, 1, 1) for first in (0, 100)]
    windows = windows_of(np.random.default_rng(0), episodes, num_windows=50, num_frames=16).flatten(1)
    assert (windows.int().diff(dim=1) == 1).all()
    assert {int(first) for first in windows[:, 0]} == {*range(5), *range(100, 105)}


def test_drawn_frames_are_a_tenth_of_a_second_apart_around_the_last_one_before_the_split():
    frames = drawn_frames(100, 33, before=None, after=None)
    assert 32 in frames
    assert set(np.diff(frames)) == {2}
    assert (frames[0], frames[-1]) == (0, 98)
    assert drawn_frames(100, 33, before=2, after=3) == [30, 32, 34, 36, 38]


def test_a_folder_of_another_drawing_is_refused_in_one_line(tmp_path):
    claim(tmp_path, Drawing(seed=1, size_px=96))
    claim(tmp_path, Drawing(seed=1, size_px=96))
    with pytest.raises(ThinkJepaError, match=r"of other settings.*another folder") as error:
        claim(tmp_path, Drawing(seed=2, size_px=96))
    assert "\n" not in str(error.value)


def drawn(number: int) -> DrawnEpisode:
    """A hand that rests and then moves somewhere, which its poses before do not tell."""
    rng = np.random.default_rng(number)
    share = np.clip(np.arange(-4, 16) / 15, 0, 1)[:, None, None]
    joints_m = rng.uniform(-0.1, 0.1, (1, 2, 3)) + share * rng.uniform(-0.3, 0.3, (1, 1, 3)) + [0, 0, 0.5]
    cameras = np.tile(np.eye(4), (20, 1, 1))
    blank = np.zeros((20, 1, 1, 3), np.uint8)
    return DrawnEpisode(blank, joints_m, cameras, split=4, color="red", place="left")


def test_a_head_reads_hands_off_latents_that_hold_them_and_not_off_noise():
    joints, parts = joints_of([drawn(number) for number in range(90)]), Parts(num_validation=10, num_test=20)
    generator = torch.Generator().manual_seed(0)
    moved_m = (joints.future_m - joints.poses.last_pose_m[:, None, None]).flatten(2)
    told = torch.sin(moved_m @ torch.randn(12, 32, generator=generator) * 3)[:, :, None]
    noise = torch.randn(told.shape, generator=generator)
    found = {
        name: read_joints(Clips(latents[:, :2], latents, joints), parts, epochs=epochs, seed=0)
        for name, latents, epochs in (("told", told, 50), ("noise", noise, 5))
    }
    held = found["told"]["last pose held"]
    away_m = moved_m[-20:].unflatten(2, (2, 2, 3)).norm(dim=-1)
    assert held.mean_m == pytest.approx(float(away_m.mean()), rel=1e-5)
    assert held.last_step_m == pytest.approx(float(away_m[:, -1].mean()), rel=1e-5)
    assert found["told"]["head"].mean_m < held.mean_m / 3
    assert found["noise"]["head"].mean_m > 0.6 * held.mean_m
    assert found["told"]["ridge on observed poses"] == found["noise"]["ridge on observed poses"]


def test_the_effective_rank_tells_a_collapse():
    joints = joints_of([drawn(number) for number in range(8)])
    wide = torch.randn(8, 8, 64, 12, generator=torch.Generator().manual_seed(0))
    line = wide[..., :1] * torch.ones(12)
    assert effective_rank(Clips(wide, wide, joints)) > 11
    assert effective_rank(Clips(line, line, joints)) == pytest.approx(1, abs=1e-3)


def test_classes_are_read_where_states_tell_them_linearly():
    generator = torch.Generator().manual_seed(0)
    classes = [("red", "blue", "green")[number % 3] for number in range(150)]
    told = torch.randn(150, 40, generator=generator)
    told[:, :3] += 8 * torch.eye(3)[[number % 3 for number in range(150)]]
    assert share_read_right(told, classes, num_validation=20, num_test=50) == 1
    noise = torch.randn(150, 40, generator=generator)
    assert share_read_right(noise, classes, num_validation=20, num_test=50) < 0.6


@pytest.fixture
def written(tmp_path):
    """A folder with a model that has hardly learned anything."""
    learner, videos = Learner(small_model(), seed=0), [pictures(20)]
    steps = list(train(learner, videos, TRAINING))
    record = training_record(steps, videos, TRAINING, data_seed=111, seconds=60)
    write_model(learner.averaged(), tmp_path, record)
    return tmp_path, learner


def test_stage_one_opens_the_files_and_takes_frames_as_they_are(written):
    folder, learner = written
    encoder, video = open_model(folder), pictures(16, seed=3)
    assert (encoder.grid, encoder.width, encoder.tubelet, encoder.longest_window) == ((8, 8), 12, 2, 20)
    assert encoder.framing == {"resize": None, "crop": {"height": 96, "width": 96}}
    pixels = encoder.preprocess(video)
    torch.testing.assert_close(pixels, torch.from_numpy(video).permute(0, 3, 1, 2))
    found = encoder.encode([pixels])[0].flatten(0, 1)
    half = learner.averaged().half().float()
    torch.testing.assert_close(found, encode(half.encoder, patches_of(video))[0], atol=1e-5, rtol=0)
    other = open_untrained(folder, seed=1)
    assert other.config.hidden_size == 12
    assert (other.encode([pixels]) - encoder.encode([pixels])).abs().max() > 0.1


def test_the_card_says_what_was_measured_and_that_it_is_not_enough(written):
    folder, _ = written
    card = (folder / "README.md").read_text()
    assert "No label\nis used" in card
    assert "Steps: 3 of 3 planned ones" in card
    assert "What can be read off it" not in card
    figures = {
        "joints": {"last pose held": {"mean_m": 0.1234, "last_step_m": 0.2}},
        **dict.fromkeys(("color", "place"), 0.5),
        **dict.fromkeys(("effective_rank", "latent_std", "num_episodes", "num_trained", "num_tested"), 3),
        "data_seed": 112,
        "off_pixels": {"color": 0.25, "place": 1.0},
    }
    write_check(folder, {**figures, "good_enough": False})
    assert "| last pose held | 123.4 | 200.0 |" in (folder / "README.md").read_text()
    assert "Off the pixels it is\n25.0% and 100.0%" in (folder / "README.md").read_text()
    assert "not good enough" in (folder / "README.md").read_text()
    write_check(folder, {**figures, "good_enough": True})
    assert "not good enough" not in (folder / "README.md").read_text()


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "VENV": sys.prefix}
    return subprocess.run(
        [TRAIN_ENCODER, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.soak
@pytest.mark.usefixtures("gl")
def test_the_command_draws_trains_and_checks_and_says_that_a_short_training_is_not_enough(tmp_path):
    out, data = tmp_path / "encoder", tmp_path / "drawn"
    size = ("--data", data, "--width", "12", "--depth", "1", "--json")
    done = run(out, *size, "--episodes", "1", "--steps", "2", "--batch-size", "1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 2
    checked = run(out, *size, "--check", "--check-episodes", "20", "--epochs", "1")
    assert checked.returncode == 1, checked.stderr
    figures = json.loads(checked.stdout)
    assert figures["good_enough"] is False
    assert figures["num_tested"] == 4
    assert figures["joints"]["last pose held"]["mean_m"] > 0.05
    assert len(list((data / "check").glob("*.npz"))) == 20


def test_a_width_that_heads_do_not_divide_is_refused_in_one_line(tmp_path):
    done = run(tmp_path / "out", "--width", "50", "--heads", "4")
    assert done.returncode == 2
    assert "--width 50 with --heads 4" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
