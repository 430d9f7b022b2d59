"""The reader of joints: it starts at the ridge, and reads what its variant has and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from poses import still_poses
from torch import Tensor

from thinkjepa.stages.train.data.tokens import TokenBatch
from thinkjepa.stages.train.fit.state import shape_from_json
from thinkjepa.stages.train.model.config import HeadShape, ModelShape
from thinkjepa.stages.train.model.forecast import ForecastModel, build_model
from thinkjepa.stages.train.model.reading import GuidanceShape
from thinkjepa.stages.train.model.trunk import initialize
from thinkjepa.stages.train.randomness import named_generator

BuildShape = Callable[..., ModelShape]
JOINTS = ("rightHand", "leftHand")
HEAD = HeadShape(joints=JOINTS, frames_per_step=2, anchor="none", width=16, reader_depth=2)
CLIPS, OBSERVED_FRAMES = 3, 6
CASES = [("poses", "film", 1), ("vlm", "film", 1), ("vlm", "cross", 1), ("vlm", "film", 3)]
"""Variant, guidance, and windows that training covers."""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model_of(
    model_shape: BuildShape, variant: str, kind: str, windows: int, *, learned: bool
) -> ForecastModel:
    """A model as it is built, or one whose zeros (output layers, gates) are drawn as by training."""
    guidance = GuidanceShape(kind=kind)  # type: ignore[arg-type]
    shape = replace(model_shape(variant), head=HEAD, guidance=guidance, windows=windows)
    model = build_model(shape, seed=1)
    assert model.head is not None
    for name, buffer in model.head.ridge.named_buffers():
        if name in ("weight", "bias", "position_center"):
            buffer.copy_(drawn(*buffer.shape))
    if learned:
        initialize(model.head, named_generator(1, "head"))
        for name, parameter in model.named_parameters():
            if name.endswith("gates"):
                torch.nn.init.constant_(parameter, 0.5)
    return model


def forecast(model: ForecastModel, *, seed: int = 0, changed: str = "", steps: int | None = None) -> Tensor:
    """Joints of three clips. The second clip's `changed` input is another."""
    parts = {
        "observed": drawn(CLIPS, 3, 6, 8, seed=seed),
        "pooled": drawn(CLIPS, 3, 2, 10, seed=seed + 1),
        "tokens": drawn(CLIPS, 3, 7, 10, seed=seed + 2),
        "poses": drawn(CLIPS, 2, 3, seed=seed + 3),
    }
    if changed:
        parts[changed][1] += 1 + drawn(*parts[changed][1].shape, seed=9)
    with torch.no_grad():
        joints_m = model(
            parts["observed"] if model.forecaster is not None else None,
            parts["pooled"],
            still_poses(parts["poses"], num_frames=OBSERVED_FRAMES),
            TokenBatch(parts["tokens"], (7, 5, 2)),
            num_steps=steps,
        ).joints_m
    assert joints_m is not None
    return joints_m


@pytest.mark.parametrize(("variant", "kind", "windows"), CASES)
def test_before_the_first_step_joints_are_the_ridges_to_the_last_bit(
    model_shape: BuildShape, variant: str, kind: str, windows: int
) -> None:
    model = model_of(model_shape, variant, kind, windows, learned=False)
    assert model.head is not None
    poses = still_poses(drawn(CLIPS, 2, 3, seed=3), num_frames=OBSERVED_FRAMES)
    assert torch.equal(forecast(model), model.head.ridge(poses, num_steps=2))
    learned = model_of(model_shape, variant, kind, windows, learned=True)
    assert not torch.equal(forecast(learned), forecast(model)), "the control"


@pytest.mark.parametrize(("variant", "kind", "windows"), CASES)
def test_joints_are_read_off_what_the_variant_has_of_the_clip_itself(
    model_shape: BuildShape, variant: str, kind: str, windows: int
) -> None:
    model = model_of(model_shape, variant, kind, windows, learned=True)
    before = forecast(model)
    read = (
        {"poses"} | ({"pooled"} if variant == "vlm" else set()) | ({"tokens"} if kind == "cross" else set())
    )
    for name in ("observed", "pooled", "tokens", "poses"):
        delta = (forecast(model, changed=name) - before).abs().amax(dim=(1, 2, 3, 4))
        assert delta[[0, 2]].tolist() == [0.0, 0.0], "no other clip"
        assert (delta[1] > 1e-5) == (name in read), name
        assert name in read or delta[1] == 0


@pytest.mark.parametrize(("variant", "kind", "windows"), CASES)
def test_each_trained_step_has_a_query_and_later_ones_repeat_the_last(
    model_shape: BuildShape, variant: str, kind: str, windows: int
) -> None:
    model, trained = model_of(model_shape, variant, kind, windows, learned=True), 2 * windows
    joints_m = forecast(model, steps=trained + 3)
    assert torch.equal(joints_m[:, trained:], joints_m[:, trained - 1 : trained].expand(-1, 3, -1, -1, -1))
    torch.testing.assert_close(forecast(model, steps=1), joints_m[:, :1])
    assert model.reader is not None
    with torch.no_grad():
        model.reader.queries[-1] += drawn(24)
    moved = (forecast(model, steps=trained) - joints_m[:, :trained]).abs().amax(dim=(0, 2, 3, 4))
    assert moved[-1] > 1e-4
    assert moved[:-1].tolist() == [0.0] * (trained - 1)


def test_vlm_learns_joints_of_their_own_for_each_step_of_several_windows(model_shape: BuildShape) -> None:
    """Each is as far as its step, and only the thinker's states say which way."""
    model, steps = model_of(model_shape, "vlm", "film", 3, learned=False), 6
    assert model.head is not None
    for buffer in (model.head.ridge.weight, model.head.ridge.bias, model.head.ridge.position_center):
        buffer.zero_()
    way_B = torch.tensor([1.0, -1.0]).repeat(4)
    pooled = way_B.view(8, 1, 1, 1) * drawn(3, 2, 10)
    poses = still_poses(torch.zeros(8, 2, 3), num_frames=OBSERVED_FRAMES)
    target_m = (way_B[:, None] * (torch.arange(steps) - 2.0)).view(8, steps, 1, 1, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        joints_m = model(drawn(8, 3, 6, 8), pooled, poses, num_steps=steps).joints_m
        (joints_m - target_m).square().mean().backward()
        optimizer.step()
    assert float((joints_m - target_m).detach().abs().max()) < 0.3


def test_the_two_variants_start_with_the_same_reader(model_shape: BuildShape) -> None:
    readers = [
        model_of(model_shape, variant, "film", 1, learned=False).reader for variant in ("poses", "vlm")
    ]
    first, second = (reader.state_dict() for reader in readers if reader is not None)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("inputs", ["latents", "poses"])
def test_a_vlm_of_an_earlier_version_or_the_papers_head_reads_its_latents(
    model_shape: BuildShape, inputs: str
) -> None:
    head = replace(HEAD, inputs=inputs)  # type: ignore[arg-type]
    record = asdict(replace(model_shape("vlm"), head=head))
    del record["head"]["reader_depth"]
    model = build_model(shape_from_json(record, path=Path("run.json")), seed=1)
    assert model.reader is None
    initialize(model.head, named_generator(1, "head"))
    found = model(
        drawn(CLIPS, 3, 6, 8),
        drawn(CLIPS, 3, 2, 10),
        poses := still_poses(drawn(CLIPS, 2, 3), num_frames=OBSERVED_FRAMES),
    )
    assert torch.equal(found.joints_m, model.read_joints(found.latents, poses))
