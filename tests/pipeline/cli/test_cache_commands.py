"""thinkjepa-cache ls, du, show, verify, rm and merge, as installed, on a cache of real features."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run_command

from thinkjepa.cache import FeatureCache, WriteSession, drop_clips, verify
from thinkjepa.cache.disk.layout import shard_file
from thinkjepa.pipeline.report.cache import HEADER

SMALL = ("--thinker-frames", "4", "--observed-frames", "4", "--future-frames", "4", "--dense-fps", "10")


def run(*arguments: object, answer: str = "") -> subprocess.CompletedProcess[str]:
    return run_command("thinkjepa-cache", *arguments, answer=answer)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        make_video(folder / "pour" / f"{number}.mp4", num_frames=70 + number, size=(160, 128))
    return folder


@pytest.fixture(scope="module")
def arguments(videos: Path, tiny_models: Path) -> tuple[object, ...]:
    models = ("--thinker", tiny_models / "thinker", "--encoder", tiny_models / "encoder")
    return ("extract", "--videos", videos, *models, *SMALL, "--stride-s", "0.5", "--json")


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory, arguments: tuple[object, ...]) -> Path:
    cache_dir = tmp_path_factory.mktemp("cache") / "cache"
    done = run(*arguments, "--cache-dir", cache_dir)
    assert done.returncode == 0, done.stderr
    return cache_dir


@pytest.fixture
def copy(tmp_path: Path, extracted: Path) -> Path:
    return shutil.copytree(extracted, tmp_path / "cache")


def faults(cache_dir: Path, *, full: bool = True) -> list[tuple[str, str]]:
    return [(item.clip_id, item.reason) for item in verify(cache_dir, full=full, advance=lambda count: None)]


def test_ls_lists_every_clip_with_its_sets(extracted: Path) -> None:
    cache = FeatureCache.open(extracted)
    listed = json.loads(run("ls", extracted, "--json").stdout)["clips"]
    assert {clip["clip_id"] for clip in listed} == set(cache.select().clip_ids.to_pylist())
    assert all(set(clip["tokens"]) == set(cache.feature_sets) for clip in listed)
    assert [clip["video"] for clip in listed] == sorted(clip["video"] for clip in listed)
    some = json.loads(run("ls", extracted, "--video", "*/1.mp4", "--json").stdout)["clips"]
    assert {clip["video"] for clip in some} == {"pour/1.mp4"}
    assert f"{len(listed)} clips" in run("ls", extracted).stdout


def test_a_cache_without_features_is_described_and_is_in_order(
    arguments: tuple[object, ...], videos: Path, tmp_path: Path
) -> None:
    """A broken video stopped the extraction before any clip."""
    shutil.copytree(videos, tmp_path / "videos")
    (tmp_path / "videos" / "z.mp4").write_text("no video")  # the others are planned before it
    flags = [tmp_path / "videos" if item == videos else item for item in arguments]
    stopped = run(*flags, "--cache-dir", tmp_path / "cache", "--max-failures", "0")
    assert stopped.returncode == 3, stopped.stderr
    info = run("info", tmp_path / "cache")
    assert info.returncode == 0, info.stderr
    assert info.stdout.count(": no features yet, so no default, 0 B") == 2
    assert run("info", tmp_path / "cache", "--json").returncode == 0
    assert faults(tmp_path / "cache") == faults(tmp_path / "cache", full=False) == []
    clip = json.loads(run("ls", tmp_path / "cache", "--json").stdout)["clips"][0]["clip_id"]
    shown = run("show", tmp_path / "cache", clip, "-o", tmp_path / "clip.png")
    assert (shown.returncode, shown.stderr.count("\n")) == (2, 1), shown.stderr


def test_ls_names_its_columns_on_a_terminal_alone(extracted: Path) -> None:
    master, terminal = pty.openpty()
    command = [str(Path(sys.executable).parent / "thinkjepa-cache"), "ls", str(extracted)]
    subprocess.run(command, stdout=terminal, check=True, timeout=240)
    os.close(terminal)
    shown = os.read(master, 100_000).decode().splitlines()
    os.close(master)
    assert shown[0] == HEADER
    assert shown[1:] == run("ls", extracted).stdout.splitlines()


def test_show_takes_the_id_of_a_video(extracted: Path, tmp_path: Path) -> None:
    clip_id = str(FeatureCache.open(extracted).clips.all().clip_ids[0])
    several = run("show", extracted, clip_id.partition("@")[0], "-o", tmp_path / "clip.png")
    assert (several.returncode, several.stderr.count("\n")) == (2, 1)
    assert " clips, name one: 'pour/" in several.stderr


def test_ls_takes_names_and_patterns(extracted: Path) -> None:
    for name in ("pour/1.mp4", "1.mp4", "1", "./videos/pour/1.mp4", "[1]*"):
        some = json.loads(run("ls", extracted, "--video", name, "--json").stdout)["clips"]
        assert {clip["video"] for clip in some} == {"pour/1.mp4"}, name
    missing = run("ls", extracted, "--video", "puor/1.mp4")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "'pour/1.mp4'" in missing.stderr


def test_pages_of_ls_are_the_list(extracted: Path) -> None:
    whole = json.loads(run("ls", extracted, "--json").stdout)
    assert whole["total"] == len(whole["clips"]) > 4
    pages = []
    for offset in range(0, whole["total"], 4):
        pages += json.loads(run("ls", extracted, "--limit", 4, "--offset", offset, "--json").stdout)["clips"]
    assert pages == whole["clips"]
    text = run("ls", extracted, "--limit", 2, "--offset", 1).stdout
    assert f"clips 2 to 3 of {whole['total']}; --offset 3 continues" in text
    assert len(text.splitlines()) == 3


def test_du_counts_what_lies_on_disk(extracted: Path) -> None:
    usage = json.loads(run("du", extracted, "--json").stdout)
    features = sum(size for item in usage["sets"].values() for size in item["arrays"].values())
    payload = sum(path.stat().st_size for path in (extracted / "features.zarr").rglob("*") if path.is_file())
    assert payload <= features < usage["bytes"]
    assert usage["unfinished_bytes"] == 0


def test_show_draws_a_clip(extracted: Path, videos: Path, tmp_path: Path) -> None:
    clip_id = FeatureCache.open(extracted).select().clip_ids[0].as_py()
    done = run("show", extracted, clip_id, "-o", tmp_path / "clip.png", "--videos", videos, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["clip_id"] == clip_id
    assert (tmp_path / "clip.png").read_bytes().startswith(b"\x89PNG")
    jpeg = run("show", extracted, clip_id, "-o", tmp_path / "clip.jpg")
    assert (jpeg.returncode, jpeg.stderr.count("\n")) == (2, 1)
    assert "give a name that ends in .png" in jpeg.stderr
    missing = run("show", extracted, "0123@4", "-o", tmp_path / "none.png")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    split_frame = clip_id.split("@")[1]
    video = json.loads(done.stdout)["video"]
    named = run("show", extracted, f"{Path(video).name}@{split_frame}", "-o", tmp_path / "same.png", "--json")
    assert json.loads(named.stdout)["clip_id"] == clip_id


def test_a_sound_cache_has_no_problems(extracted: Path) -> None:
    assert faults(extracted) == []
    done = run("verify", extracted, "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"problems": [], "dropped": 0})


def test_every_flipped_bit_of_a_feature_is_found_and_the_clip_named(copy: Path) -> None:
    cache = FeatureCache.open(copy)
    rng = np.random.default_rng(0)
    for feature_set in cache.feature_sets.values():
        for name, spec in feature_set.arrays.items():
            path = shard_file(copy, feature_set.name, spec, 0)
            sound = path.read_bytes()
            for place in rng.integers(0, len(sound), 4):
                damaged = bytearray(sound)
                damaged[place] ^= 1 << int(rng.integers(8))
                path.write_bytes(damaged)
                found = faults(copy)
                assert found, (name, place)
                assert all(clip_id for clip_id, _ in found)
            path.write_bytes(sound)


@pytest.mark.parametrize("pattern", ["clips/*.parquet", "*/index/*.parquet", "features.zarr/*/*/zarr.json"])
def test_a_truncated_small_file_is_found(copy: Path, pattern: str) -> None:
    path = next(iter(sorted(copy.glob(pattern))))
    path.write_bytes(path.read_bytes()[:-9])
    assert path.name in faults(copy)[0][1]


def test_quick_finds_missing_and_truncated_shards(copy: Path) -> None:
    cache = FeatureCache.open(copy)
    encoder = cache.choose_set("encoder")
    path = shard_file(copy, encoder.name, encoder.arrays["observed"], 0)
    path.write_bytes(path.read_bytes()[:-100])
    assert {reason.split(" has ")[0] for _, reason in faults(copy, full=False)} == {f"shard {str(path)!r}"}
    path.unlink()
    assert all("missing" in reason for _, reason in faults(copy, full=False))


def test_repair_drops_exactly_the_damaged_clip_and_extraction_makes_it_anew(
    copy: Path, extracted: Path, arguments: tuple[object, ...]
) -> None:
    cache = FeatureCache.open(copy)
    name = cache.choose_set("thinker").name
    clip_ids = cache.select().clip_ids.to_pylist()
    shard, slot = cache.shard_of(name, "pooled", clip_ids[1])
    with shard.path.open("r+b") as file:
        file.seek(int(shard._index[slot][0]) + 5)
        file.write(b"\xff")
    assert "--repair drops the damaged clips" in run("verify", copy).stdout
    done = run("verify", copy, "--repair", "--json")
    report = json.loads(done.stdout)
    assert [problem["clip_id"] for problem in report["problems"]] == [clip_ids[1]]
    assert (done.returncode, report["dropped"]) == (0, 1)
    again = run(*arguments, "--cache-dir", copy)
    assert (again.returncode, json.loads(again.stdout)["extracted"]) == (0, 1)
    assert faults(copy) == []
    mended, sound = (FeatureCache.open(path).read(name, "pooled", clip_ids) for path in (copy, extracted))
    # Alone in its batch now, so equal within rounding (float32, states up to 25), not to the bit.
    assert torch.allclose(mended, sound, rtol=0, atol=1e-5 * float(sound.abs().max()))


def test_dropping_nothing_changes_nothing(copy: Path) -> None:
    with WriteSession(copy):
        assert drop_clips(copy, []) == 0
    assert faults(copy) == []


def test_rm_asks_and_removes_what_is_named(copy: Path) -> None:
    names = ("rm", copy, "--video", "pour/1*")
    clips = FeatureCache.open(copy).select().clip_ids.to_pylist()
    told = json.loads(run(*names, "--dry-run", "--json").stdout)
    assert (told["removed"], 0 < len(told["clip_ids"]) < len(clips)) == (False, True)
    for answer in ("n\n", ""):  # no, and nobody there
        refused = run(*names, answer=answer)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.endswith("error: nothing was removed; --yes removes without asking\n")
    assert FeatureCache.open(copy).select().clip_ids.to_pylist() == clips
    done = run(*names, answer="y\n")
    assert (done.returncode, done.stdout.startswith(f"removed {len(told['clip_ids'])} clips")) == (0, True)
    assert set(FeatureCache.open(copy).select().clip_ids.to_pylist()) == set(clips) - set(told["clip_ids"])
    name = FeatureCache.open(copy).choose_set("thinker").name
    assert run("rm", copy, "--set", name, "--yes").returncode == 0
    assert [item.kind for item in FeatureCache.open(copy).feature_sets.values()] == ["encoder"]
    assert faults(copy) == []
    for wrong in (("rm", copy), ("rm", copy, "--clip", "0@4", "--yes"), ("rm", copy, "--set", name, "--yes")):
        refused = run(*wrong)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr


def test_merge_unites_two_caches(copy: Path, extracted: Path, tmp_path: Path) -> None:
    assert run("rm", copy, "--video", "pour/1*", "--yes").returncode == 0
    done = run("merge", copy, extracted, "-o", tmp_path / "both", "--json")
    assert done.returncode == 0, done.stderr
    clips = FeatureCache.open(extracted).select().clip_ids.to_pylist()
    assert json.loads(done.stdout)["clips"] == len(clips)
    for name, feature_set in FeatureCache.open(extracted).feature_sets.items():
        for array in feature_set.arrays:
            both, alone = (
                FeatureCache.open(path).read(name, array, clips) for path in (tmp_path / "both", extracted)
            )
            assert torch.equal(both.nan_to_num(nan=-1.0), alone.nan_to_num(nan=-1.0))
    assert faults(tmp_path / "both") == []
    again = run("merge", copy, tmp_path / "nowhere", "-o", tmp_path / "third")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1), again.stderr
