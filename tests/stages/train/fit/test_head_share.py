"""The ridge counts alone unless groups of validation clips agree that what the head adds brings it nearer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from thinkjepa.stages.intervals import Clusters
from thinkjepa.stages.train.fit.head_share import choose_share, clusters_of
from thinkjepa.stages.train.fit.state import EpochLosses, FitState
from thinkjepa.stages.train.model.head import SHARES
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]
RIDGE = len(SHARES) - 1
RIDGE_M = 0.05


def distances(gains_m: list[float]) -> Tensor:
    """Distances `(clip, share)` of clips to which the whole head is so much nearer than the ridge."""
    shares = torch.tensor(SHARES, dtype=torch.float64)
    return RIDGE_M - torch.tensor(gains_m, dtype=torch.float64)[:, None] * shares


def each_its_group(num_clips: int) -> Clusters:
    return Clusters(groups=list(range(num_clips)), videos=list(range(num_clips)))


def test_a_head_that_is_nearer_in_most_groups_counts() -> None:
    gains_m = [0.002, 0.003, 0.004, 0.001, 0.003, 0.002]
    assert choose_share(distances(gains_m), each_its_group(6)) == 0
    halves = distances(gains_m) + (torch.tensor(SHARES) - 0.5).abs() * 0.02
    assert SHARES[choose_share(halves, each_its_group(6))] == 0.5


@pytest.mark.parametrize(
    "gains_m",
    [
        pytest.param([0.02, 0.0, -0.001, 0.0, 0.001, -0.001], id="nearer in one group alone"),
        pytest.param([0.004, -0.003, 0.002, -0.002, 0.003, -0.001], id="nearer by chance"),
        pytest.param([-0.001, -0.002, -0.001, -0.003, -0.001, -0.002], id="farther"),
        pytest.param([0.0] * 6, id="equal"),
        pytest.param([0.01], id="a single clip"),
    ],
)
def test_else_the_ridge_counts_alone(gains_m: list[float]) -> None:
    assert choose_share(distances(gains_m), each_its_group(len(gains_m))) == RIDGE


def test_clips_of_one_group_do_not_vouch_for_each_other() -> None:
    gains_m = [0.004, 0.005, 0.003, 0.004, 0.001, 0.002, 0.001, 0.002]
    assert choose_share(distances(gains_m), each_its_group(8)) == 0
    two_groups = Clusters(groups=[0] * 4 + [1] * 4, videos=list(range(8)))
    assert choose_share(distances(gains_m), two_groups) == RIDGE


def test_clips_without_a_known_joint_have_no_part() -> None:
    found = distances([0.002, 0.003, 0.004, 0.001, 0.003, 0.002, 0.0, 0.0])
    found[6:] = torch.nan
    assert choose_share(found, each_its_group(8)) == 0
    assert choose_share(torch.full_like(found, torch.nan), each_its_group(8)) == RIDGE


def test_a_head_that_has_no_other_share_counts_whole() -> None:
    assert choose_share(distances([0.01, -0.02])[:, :1], each_its_group(2)) == 0


def test_groups_are_given_by_clip_and_videos_stand_in() -> None:
    clip_ids = ["a@8", "a@20", "b@8", "c@8"]
    assert clusters_of(clip_ids, {}).num_videos == 3
    assert clusters_of(clip_ids, {}).unit == "video"
    grouped = clusters_of(clip_ids, {"a@8": "one", "a@20": "one", "b@8": "one", "c@8": "two"})
    assert (grouped.num_groups, grouped.unit) == (2, "group")


def test_of_epochs_that_keep_the_ridge_the_one_of_the_best_latents_is_kept() -> None:
    state, model = FitState(select_by="joints"), torch.nn.Linear(1, 1)
    for epoch, latents in enumerate((0.9, 0.5, 0.7), start=1):
        torch.nn.init.constant_(model.weight, epoch)
        state = state.after(EpochLosses(epoch, 1.0, 1.0, latents, RIDGE_M, head_share=0.0), model)
    assert state.best.epoch == 2
    assert state.best_weights["weight"].item() == 2


def test_few_clips_of_noise_keep_the_ridge_and_say_so(latent_cache: BuildCache, tmp_path: Path) -> None:
    """Hands go straight on, so that the ridge knows all but the camera's sway, which nothing tells."""
    settings = TrainSettings(
        variant="jepa", epochs=6, batch_size=4, depth=1, width=24, heads=2, head_width=16, device="cpu"
    )
    metrics = train(latent_cache(num_videos=24, labelled=24), tmp_path / "run", settings)
    rows = [line.split(",") for line in (tmp_path / "run" / "curve.csv").read_text().splitlines()]
    curve = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert {float(row["head_share"]) for row in curve} == {metrics["head_share"]} == {0.0}
    assert metrics["validation_latent_error"] == min(float(row["validation_latent_error"]) for row in curve)
