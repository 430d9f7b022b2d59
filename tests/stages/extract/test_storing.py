"""Compressed and 8-bit features through the installed commands: same results, or the error that is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from thinkjepa.cache import FeatureCache

MakeVideo = Callable[..., Path]
RunCommand = Callable[..., Any]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "0.mp4", num_frames=60, fps=30)
    return folder


def test_codecs_change_no_bit_and_fp8_no_more_than_info_says(
    videos: Path, run_extract: RunCommand, run_command: RunCommand, tmp_path: Path
) -> None:
    caches = {}
    for name, flags in {"plain": (), "blosc": ("--codec", "blosc"), "fp8": ("--fp8", "all")}.items():
        outcome = run_extract(videos, tmp_path / name, *flags)
        assert outcome.status == 0, outcome.stderr
        caches[name] = FeatureCache.open(tmp_path / name)
    plain, blosc, fp8 = (caches[name] for name in ("plain", "blosc", "fp8"))
    assert set(plain.feature_sets) == set(blosc.feature_sets)
    assert not set(plain.feature_sets) & set(fp8.feature_sets)
    info = run_command("thinkjepa-cache", "info", tmp_path / "fp8", "--json").json
    told = {item["kind"]: item["arrays"] for item in info["feature_sets"]}
    for kind, array in (("thinker", "tokens"), ("encoder", "observed"), ("encoder", "future")):
        names = [cache.choose_set(kind).name for cache in (plain, blosc, fp8)]
        ids = plain.index(names[0]).clip_ids.to_pylist()
        exact, same, near = (
            cache.read(name, array, ids) for cache, name in zip((plain, blosc, fp8), names, strict=True)
        )
        assert torch.equal(exact, same)
        off = (near - exact).norm(dim=-1) / exact.norm(dim=-1).clamp_min(1e-30)
        assert 0.01 < told[kind][array]["fp8_error"]["max"] < 0.0625
        assert float(off.max()) == pytest.approx(told[kind][array]["fp8_error"]["max"], rel=1e-4)
