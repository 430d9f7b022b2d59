"""Clips and videos are found by what people type, and a name that means several or none is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from thinkjepa.cache import CacheError, ClipFeatures, ClipRow, FeatureCache, FeatureSet, WriteSession
from thinkjepa.pipeline.report.names import clips_of, find_clip_id, videos_named

VIDEOS = ("cup.mp4", "pour/cup.mp4", "pour/jug.mp4", "odd/a@b [1].mp4")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("cup.mp4", {"cup.mp4"}),  # the path itself goes before the ends of others
        ("pour/cup.mp4", {"pour/cup.mp4"}),
        ("jug.mp4", {"pour/jug.mp4"}),
        ("ug.mp4", set()),  # an end starts at a folder
        ("jug", {"pour/jug.mp4"}),
        ("data/videos/pour/jug.mp4", {"pour/jug.mp4"}),
        ("pour/*", {"pour/cup.mp4", "pour/jug.mp4"}),
        ("cup*", {"cup.mp4", "pour/cup.mp4"}),
        ("a@b [1].mp4", {"odd/a@b [1].mp4"}),  # not a pattern where it is a name
        ("*", set(VIDEOS)),
    ],
)
def test_a_name_means_videos(name: str, meant: set[str]) -> None:
    assert videos_named(VIDEOS, name) == meant


@pytest.fixture
def cache(
    tmp_path: Path,
    encoder_set: Callable[..., FeatureSet],
    make_clip: Callable[..., ClipRow],
    make_features: Callable[..., ClipFeatures],
) -> FeatureCache:
    """Two clips of pour/cup.mp4, one of every other video; jug.mp4 was planned twice and extracted once."""
    feature_set = encoder_set()
    videos = {"a": VIDEOS[0], "b": VIDEOS[1], "c": VIDEOS[2], "d": VIDEOS[3]}
    clip_ids = ["a@69", "b@69", "b@99", "c@30", "c@60", "d@9"]
    clips = [make_clip(clip_id, video=videos[clip_id[0]]) for clip_id in clip_ids]
    with WriteSession(tmp_path / "c") as session:
        session.add_clips(clips)
        with session.writer(session.resolve(feature_set)) as writer:
            writer.append([make_features(feature_set, clip_id) for clip_id in clip_ids if clip_id != "c@60"])
    return FeatureCache.open(tmp_path / "c")


@pytest.mark.parametrize(
    ("name", "clip_id"),
    [
        ("b@99", "b@99"),
        ("cup.mp4", "a@69"),
        ("cup.mp4@69", "a@69"),
        ("pour/cup@99", "b@99"),
        ("a@b [1].mp4", "d@9"),
        ("a@b [1].mp4@9", "d@9"),
        ("jug.mp4", "c@30"),  # the one with features
        ("jug.mp4@60", "c@60"),
        ("a", "a@69"),  # the video's id
        ("c", "c@30"),
    ],
)
def test_a_name_means_a_clip(cache: FeatureCache, name: str, clip_id: str) -> None:
    assert find_clip_id(cache, name) == clip_id


def test_several_clips_and_none_are_refused_with_names_to_choose_from(cache: FeatureCache) -> None:
    with pytest.raises(CacheError, match=r"means 2 clips, name one: 'pour/cup.mp4@69', 'pour/cup.mp4@99'$"):
        find_clip_id(cache, "pour/cup.mp4")
    with pytest.raises(CacheError, match=r"'b' means 2 clips, name one: 'pour/cup.mp4@69', 'pour/cup"):
        find_clip_id(cache, "b")
    with pytest.raises(CacheError, match=r"'b@7'.*; its video has 'pour/cup.mp4@69', 'pour/cup.mp4@99'"):
        find_clip_id(cache, "b@7")
    with pytest.raises(CacheError, match=r"no clip is named 'jugg.mp4@30'.*nearest are 'pour/jug.mp4'"):
        find_clip_id(cache, "jugg.mp4@30")
    with pytest.raises(CacheError, match=r"no clip is named 'pour/cup.mp4@7'.* has 'pour/cup.mp4@69', "):
        find_clip_id(cache, "pour/cup.mp4@7")
    with pytest.raises(CacheError, match=r"no video matches 'nothing/\*'"):
        clips_of(cache, "nothing/*")


def test_a_pattern_means_the_clips_of_its_videos(cache: FeatureCache) -> None:
    assert clips_of(cache, "cup*").clip_ids.to_pylist() == ["a@69", "b@69", "b@99"]
