"""Upgrading a set that has its tokens: the arrays of an extraction, to the last bit, without a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from extraction import RunCommand

from thinkjepa.cache import FeatureCache, FeatureSet, fingerprint, verify
from thinkjepa.cache.disk.checksums import replace_listed
from thinkjepa.cache.shards.identity import LENGTH_BYTES, MARK, TAIL_BYTES

SET_NAME_HEX = 12


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("upgraded") / "videos"
    make_video(folder / "0.mp4", num_frames=60, fps=30)
    make_video(folder / "1.mp4", num_frames=60, fps=30, size=(224, 128))
    return folder


@pytest.fixture(scope="module")
def earlier(videos: Path, run_extract: RunCommand, tiny_models: Path) -> Path:
    """A cache with all arrays, and the models' folder without the thinker's weights next to it."""
    cache_dir = videos.parent / "cache"
    outcome = run_extract(videos, cache_dir, "--keep", "pooled,slots,text,tokens")
    assert outcome.status == 0, outcome.stderr
    folder = videos.parent / "processor"
    shutil.copytree(tiny_models / "thinker", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return cache_dir


def as_of_before(cache_dir: Path) -> FeatureSet:
    """Take from the thinker's set what sets of version 1 do not have, its two streams aside."""
    cache = FeatureCache.open(cache_dir)
    item = cache.choose_set("thinker")
    content = json.loads((cache_dir / "cache.json").read_bytes())
    (record,) = [record for record in content["feature_sets"] if record["name"] == item.name]
    for name in ("keep", "streams", "slot_segments"):
        del record["origin"][name]
    for array in ("slots", "slot_position", "text_tokens", "text_kind", "token_position"):
        del record["arrays"][array]
    digest = fingerprint({"kind": "thinker", **record["origin"]})
    name = f"thinker-{digest[:SET_NAME_HEX]}"
    record |= {"name": name, "fingerprint": digest}
    content["schema"] = "thinkjepa.cache.v1"
    replace_listed(cache_dir / "cache.json", json.dumps(content).encode())
    for parent in (cache_dir, cache_dir / "features.zarr"):
        (parent / item.name).rename(parent / name)
    for shard in (cache_dir / "features.zarr" / name).rglob("c/**/*"):
        if shard.is_file():
            take_identity(shard)
    return FeatureCache.open(cache_dir).find_set(name)


def take_identity(shard: Path) -> None:
    """Take from a sealed shard the record of its set, which earlier versions did not write."""
    content = shard.read_bytes()
    end = content.rindex(MARK) + len(MARK)
    size = int.from_bytes(content[end - len(MARK) - LENGTH_BYTES : end - len(MARK)], "little")
    shard.write_bytes(content[: end - TAIL_BYTES - size] + content[end:])


@pytest.fixture
def old(earlier: Path, tmp_path: Path) -> Path:
    shutil.copytree(earlier, tmp_path / "cache")
    as_of_before(tmp_path / "cache")
    return tmp_path / "cache"


def run_upgrade(run_command: RunCommand, cache_dir: Path, videos: Path, *flags: object) -> Any:
    return run_command(
        "thinkjepa-cache",
        *("upgrade", cache_dir, "--videos", videos, "--thinker", videos.parent / "processor"),
        *(*flags, "--json"),
    )


def test_an_upgrade_equals_an_extraction(
    earlier: Path, old: Path, videos: Path, run_command: RunCommand, run_extract: RunCommand
) -> None:
    outcome = run_upgrade(run_command, old, videos)
    assert outcome.status == 0, outcome.stderr
    extracted, upgraded = FeatureCache.open(earlier), FeatureCache.open(old)
    clip_ids = extracted.index(extracted.choose_set("thinker").name).clip_ids.to_pylist()
    assert outcome.json["upgraded"] == len(clip_ids) >= 2
    target = upgraded.find_set(outcome.json["feature_set"])
    whole = extracted.choose_set("thinker")
    assert target.streams == whole.streams
    assert set(target.arrays) == {"pooled", "slots", "slot_position", "text_tokens", "text_kind"}
    for array in target.arrays:
        found = upgraded.read(target.name, array, clip_ids)
        expected = extracted.read(whole.name, array, clip_ids)
        assert torch.equal(found.nan_to_num(nan=-1.0), expected.nan_to_num(nan=-1.0)), array
    for column in ("slot_count", "text_count", "frame_width_px", "frame_height_px", "token_ids"):
        counts = [
            cache.index(name).values_of(clip_ids, column)
            for cache, name in ((upgraded, target.name), (extracted, whole.name))
        ]
        assert counts[0] == counts[1]
    again = run_upgrade(run_command, old, videos, "--set", outcome.json["source"])
    assert (again.json["upgraded"], again.json["already_there"]) == (0, len(clip_ids))
    continued = run_extract(videos, old, "--keep", "pooled,slots,text")
    assert continued.json["thinker_set"] == target.name
    assert continued.json["extracted"] == 0
    problems = verify(old, full=True, advance=lambda _: None)
    assert not [item for item in problems if item.feature_set == target.name]


def test_clips_without_their_video_are_named(old: Path, videos: Path, run_command: RunCommand) -> None:
    folder = old.parent / "some"
    folder.mkdir()
    shutil.copy(videos / "0.mp4", folder)
    outcome = run_command(
        "thinkjepa-cache",
        *("upgrade", old, "--videos", folder, "--thinker", videos.parent / "processor", "--json"),
    )
    assert outcome.status == 3
    assert all(line.endswith("(1.mp4)") for line in outcome.json["missing"])
    assert outcome.json["upgraded"] >= 1


def test_a_set_without_tokens_is_refused(
    videos: Path, earlier: Path, run_command: RunCommand, tmp_path: Path
) -> None:
    shutil.copytree(earlier, tmp_path / "cache")
    outcome = run_upgrade(run_command, tmp_path / "cache", videos)
    assert outcome.status == 0  # it has all of it
    assert outcome.json["upgraded"] == 0
    content = json.loads((tmp_path / "cache" / "cache.json").read_bytes())
    for record in content["feature_sets"]:
        record["arrays"].pop("tokens", None)
    replace_listed(tmp_path / "cache" / "cache.json", json.dumps(content).encode())
    refused = run_upgrade(run_command, tmp_path / "cache", videos)
    assert refused.status == 2
    assert "no tokens" in refused.stderr
    assert refused.stderr.count("\n") == 1
