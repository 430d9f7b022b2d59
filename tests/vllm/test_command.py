"""`thinkjepa-cache extract --backend vllm` as installed: the same cache, nothing of the future in it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import thinker_families

from thinkjepa.cache import ClipRow, FeatureCache

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

SMALL = ("--thinker-frames", "4", "--observed-frames", "4", "--future-frames", "4", "--dense-fps", "10")
KEEP = ("--keep", "pooled,slots,text,tokens")
"""Sets are compared by all tokens."""
SPLIT = 30
TOLERANCE = 1e-5
"""Of a layer's largest state, float32: states go up to 25 here."""
LONG_PROMPT = "Describe this video. " * 100
"""For states that are larger than all frames of a clip, which lie in files, too: memory files."""
FILE_LIMIT_KB = 600
"""Between a clip's frames, 12 x 96 x 128 x 3 B, and its states, 7 layers x 400 tokens and more x 64 x 4 B."""


def run(*arguments: object, shell_prefix: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "thinkjepa-cache"), *map(str, arguments)]
    if shell_prefix:
        command = ["bash", "-c", f'{shell_prefix}; exec "$0" "$@"', *command]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)


def write_video(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Lossless, every frame by itself: what comes later leaves no trace in what was before."""
    path.parent.mkdir(parents=True)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264rgb", rate=30, options={"qp": "0", "g": "1", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, equal before frame SPLIT and different, in length too, from there on."""
    folder, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    past = rng.integers(0, 256, (SPLIT, 96, 128, 3), dtype=np.uint8)
    for name, length in (("a", 30), ("b", 36)):
        write_video(
            folder / name / "v.mp4", [*past, *rng.integers(0, 256, (length, 96, 128, 3), dtype=np.uint8)]
        )
    return folder


@pytest.fixture(scope="module")
def arguments(videos: Path, tiny_models: Path) -> tuple[object, ...]:
    models = ("--thinker", tiny_models / "thinker", "--encoder", tiny_models / "encoder")
    layers = ("--layers", "0,1,2,3,4,5,6", "--max-new-tokens", 6, *KEEP, "--stride-s", "0.2")
    return ("extract", "--videos", videos, *models, *SMALL, *layers, "--json")


def test_a_full_staging_folder_ends_the_run_and_the_next_one_makes_the_cache_of_transformers(
    tmp_path: Path, arguments: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_dir, staging = tmp_path / "cache", tmp_path / "staging"
    staging.mkdir()
    monkeypatch.setenv("TMPDIR", str(staging))
    asked = (*arguments, "--prompt", LONG_PROMPT, "--cache-dir", cache_dir)
    by_vllm = (*asked, "--backend", "vllm")
    full = run(*by_vllm, shell_prefix=f"ulimit -f {FILE_LIMIT_KB}")
    assert (full.returncode, full.stdout) == (2, "")
    assert f"cannot pass through {str(staging)!r}" in full.stderr
    assert "Traceback" not in full.stderr
    assert list(staging.glob("thinkjepa-vllm-*")) == []
    assert all(
        len(FeatureCache.open(cache_dir).index(name)) == 0 for name in sets_by_backend(cache_dir).values()
    )

    done = run(*by_vllm)
    assert done.returncode == 0, done.stderr
    assert list(staging.glob("thinkjepa-vllm-*")) == []
    report = json.loads(done.stdout)
    assert report["extracted"] == report["clips"] > 4

    plain = run(*asked, "--backend", "transformers")
    assert plain.returncode == 0, plain.stderr
    assert_caches_are_equal(cache_dir, clips=report["clips"])


@pytest.mark.parametrize("family", ["qwen3-vl", "qwen2.5-vl"])
def test_frames_as_images_make_the_cache_of_transformers(
    tmp_path: Path, arguments: tuple[object, ...], tiny_models: Path, family: str
) -> None:
    thinker, layers = tiny_models / "thinker", "0,1,2,3,4,5,6"
    if family != "qwen3-vl":
        thinker, layers = thinker_families.write_family(family, tmp_path / "thinker"), "0,1,2,3,4"
    cache_dir = tmp_path / "cache"
    given = (*arguments, "--thinker", thinker, "--layers", layers, "--cache-dir", cache_dir)
    if family == "qwen2.5-vl":
        video = run(*given, "--backend", "vllm")
        assert (video.returncode, video.stdout) == (2, "")
        assert "--frames-as images" in video.stderr
    for backend in ("vllm", "transformers"):
        done = run(*given, "--frames-as", "images", "--backend", backend)
        assert done.returncode == 0, done.stderr
    assert_caches_are_equal(cache_dir, clips=json.loads(done.stdout)["clips"])


def assert_caches_are_equal(cache_dir: Path, *, clips: int) -> None:
    sets = sets_by_backend(cache_dir)
    compared = run("compare", cache_dir, sets["transformers"], sets["vllm"], "--json")
    difference = json.loads(compared.stdout)
    assert difference["clips"] == difference["clips_with_equal_tokens"] == clips
    layers = FeatureCache.open(cache_dir).feature_sets[sets["vllm"]].layers
    assert set(difference["states"]) == {f"layer {layer}" for layer in layers}
    for name, item in difference["states"].items():
        assert item["max_abs_difference"] <= TOLERANCE * item["max_abs_of_a"], name
    assert_past_is_the_same(cache_dir, sets["vllm"])


def sets_by_backend(cache_dir: Path) -> dict[str, str]:
    sets = FeatureCache.open(cache_dir).feature_sets.values()
    return {item.origin["backend"]: item.name for item in sets if item.kind == "thinker"}


def assert_past_is_the_same(cache_dir: Path, thinker_set: str) -> None:
    """Features of both videos are the same to the last bit up to SPLIT, and differ after it."""
    cache = FeatureCache.open(cache_dir)
    clips: dict[str, dict[int, ClipRow]] = {"a": {}, "b": {}}
    for clip in cache.select(thinker_set):
        clips[clip.video[0]][clip.split_frame] = clip
    splits = sorted(set(clips["a"]) & set(clips["b"]))
    assert splits[0] <= SPLIT < splits[-1]
    for split in splits:
        pair = [clips[name][split].clip_id for name in "ab"]
        read = cache.read(thinker_set, "tokens", pair)
        same = read[0].numpy().tobytes() == read[1].numpy().tobytes()
        assert same == (split <= SPLIT), split


@pytest.mark.parametrize(("flags", "named"), [(("--quantization", "nonsense"), "nonsense")])
def test_what_vllm_cannot_start_with_ends_in_one_line(
    tmp_path: Path, arguments: tuple[object, ...], flags: tuple[str, ...], named: str
) -> None:
    done = run(*arguments, "--cache-dir", tmp_path / "cache", "--backend", "vllm", *flags)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr
