"""Extraction of the user's own clips: nothing from outside a segment, and their groups and partitions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from new_videos import lossless_video, train_run
from torch import Tensor

from thinkjepa.cache import FeatureCache
from thinkjepa.pipeline.project.params import read_params
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.data.partitioned_clips import partition_clips
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.data.tracked_files import folder_manifest, make_selection
from thinkjepa.stages.data.videos import DigestMemory
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.evaluation import evaluate
from thinkjepa.stages.extract.run import extract
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings
from thinkjepa.stages.progress import NoProgress
from thinkjepa.stages.settings import SettingsError

CLIPS = ClipSettings(thinker_frames=4, observed_frames=4, future_frames=4, dense_fps=10)
Extract = Callable[..., Any]
RunCommand = Callable[..., Any]


@pytest.fixture(scope="module")
def run(tiny_models: Path) -> Extract:
    """A function that extracts the clips of a table, given as text, of a folder's videos."""

    def extracted(folder: Path, cache_dir: Path, table: str) -> Any:
        file = folder.parent / f"{cache_dir.name}.csv"
        file.write_text(table)
        return extract(
            folder,
            cache_dir,
            clips=CLIPS,
            models=ModelSettings(
                thinker=str(tiny_models / "thinker"), encoder=str(tiny_models / "encoder"), max_new_tokens=4
            ),
            execution=ExecutionSettings(device="cpu", batch_size=1),
            progress=NoProgress(),
            clips_file=file,
        )

    return extracted


def features_of(cache_dir: Path, video: str) -> dict[str, Tensor]:
    """All arrays of the only clip of a video, with a number in place of NaN, so that they compare."""
    cache = FeatureCache.open(cache_dir)
    (clip,) = [clip for clip in cache.clips.all() if clip.video == video]
    return {
        array: cache.read(name, array, [clip.clip_id]).nan_to_num(nan=-7)
        for name, item in cache.feature_sets.items()
        for array in item.arrays
    }


def test_frames_outside_the_segment_change_not_one_bit(tmp_path: Path, run: Extract) -> None:
    """Frames 10 to 29 are the segment and 20 is the split; the control is without a start."""
    changes = {
        "plain": None,
        "before": slice(0, 10),
        "after": slice(30, 40),
        "future": slice(20, 40),
        "past": slice(10, 20),
    }
    (tmp_path / "videos").mkdir()
    for name, change in changes.items():
        lossless_video(tmp_path / "videos" / f"{name}.mkv", change=change)
    header = "video,split_s,start_s,end_s\n"
    rows = [f"{name}.mkv,2.0,1.0,3.0" for name in changes]
    report = run(tmp_path / "videos", tmp_path / "cut", header + "\n".join(rows) + "\n")
    assert (report.clips, report.extracted) == (5, 5)
    found = {name: features_of(tmp_path / "cut", f"{name}.mkv") for name in changes}
    seen = [array for array in found["plain"] if array != "future"]
    assert {"pooled", "observed"} <= set(seen)

    def equal(name: str, arrays: list[str]) -> bool:
        return all(torch.equal(found["plain"][array], found[name][array]) for array in arrays)

    assert equal("before", [*seen, "future"])
    assert equal("after", [*seen, "future"])
    assert equal("future", seen)
    assert not equal("future", ["future"])
    assert not equal("past", ["pooled"])
    assert not equal("past", ["observed"])
    rows = [f"{name}.mkv,2.0,," for name in ("plain", "before")]
    run(tmp_path / "videos", tmp_path / "whole", header + "\n".join(rows) + "\n")
    whole = [features_of(tmp_path / "whole", f"{name}.mkv") for name in ("plain", "before")]
    assert not torch.equal(whole[0]["pooled"], whole[1]["pooled"])
    assert torch.equal(whole[0]["observed"], whole[1]["observed"])


EPISODES = "video,split_frame,start_s,end_s,group,partition\n" + "".join(
    f"0.mkv,{10 * number + 5},{number}.0,{number + 1}.0,episode {number},{side}\n"
    for number, side in enumerate(("train", "train", "validation", "test"))
)
"""Four episodes in one file: the observed window and the future of each take nine of its ten frames."""


def test_groups_and_partitions_reach_the_split(tmp_path: Path, run: Extract) -> None:
    (tmp_path / "videos").mkdir()
    lossless_video(tmp_path / "videos" / "0.mkv", change=None)
    lossless_video(tmp_path / "videos" / "unnamed.mkv", change=slice(0, 1))
    report = run(tmp_path / "videos", tmp_path / "cache", EPISODES)
    assert (report.videos, report.clips, report.too_short) == (1, 4, [])
    cache = FeatureCache.open(tmp_path / "cache")
    rows = cache.select()
    assert rows.values("group") == [f"episode {number}" for number in (1, 2, 3, 0)]
    divided = partition_clips(rows, cache.path, SplitRule())
    frames = {name: sorted(id_.rpartition("@")[2] for id_ in ids) for name, ids in divided.ids.items()}
    assert frames == {"train": ["10-15", "5"], "validation": ["20-25"], "test": ["30-35"]}
    assert divided.stored.grouping == "file"
    assert (divided.stored.rule.partition, divided.warning) == ("file", "")
    assert [divided.sizes[name].groups for name in ("train", "validation", "test")] == [2, 1, 1]
    trained = train_run(cache.path, tmp_path / "run", variant="jepa", share=0.5, rule=SplitRule())
    assert json.loads((trained / "metrics.json").read_text())["num_clips"]["train"] == 1
    evaluate(trained)
    assert pq.read_table(trained / "eval-test.parquet")["group"].to_pylist() == ["episode 3"]
    by_hash = partition_clips(rows, cache.path, SplitRule(partition="hash"))
    assert [len(ids) for ids in by_hash.ids.values()] == [2, 1, 1], "episodes of one video are divided"
    with pytest.raises(StageError, match="at least 3 groups"):
        partition_clips(rows, cache.path, SplitRule(partition="hash", group_by="video"))


def test_an_edited_table_is_another_selection_and_extracts_nothing_anew(tmp_path: Path, run: Extract) -> None:
    (tmp_path / "videos").mkdir()
    lossless_video(tmp_path / "videos" / "0.mkv", change=None)
    selections = []
    for table in (EPISODES, EPISODES.replace("episode 1,train", "episode 1,test"), EPISODES):
        report = run(tmp_path / "videos", tmp_path / "cache", table)
        selections.append(
            make_selection(
                tmp_path / "cache",
                thinker_set=report.thinker_set,
                encoder_set=report.encoder_set,
                clip_ids=report.clip_ids,
            )
        )
        assert report.extracted == (4 if len(selections) == 1 else 0)
    assert selections[0] == selections[2] != selections[1]
    assert selections[0].clips == selections[1].clips


def test_clips_with_and_without_a_partition_are_not_mixed_silently(tmp_path: Path, run: Extract) -> None:
    (tmp_path / "videos").mkdir()
    lossless_video(tmp_path / "videos" / "0.mkv", change=None)
    run(tmp_path / "videos", tmp_path / "cache", EPISODES)
    kept = SplitRule(partition="hash", split_seed=1)
    cache = FeatureCache.open(tmp_path / "cache")
    assert partition_clips(cache.select(), cache.path, kept).stored.grouping == "file"
    run(tmp_path / "videos", tmp_path / "cache", "video,split_frame\n0.mkv,7\n")
    cache = FeatureCache.open(tmp_path / "cache")
    with pytest.raises(StageError, match=r"--partition auto: 1 of 5 clips have no partition"):
        partition_clips(cache.select(), cache.path, SplitRule())
    with pytest.raises(StageError, match=r"--group-by auto: 1 of 5 clips have no group"):
        partition_clips(cache.select(), cache.path, SplitRule(partition="hash"))
    with pytest.raises(StageError, match=r"--group-by file: 1 of 5 clips have no group"):
        partition_clips(cache.select(), cache.path, kept)


def test_the_command_takes_a_table_and_says_which_rows_are_too_short(
    videos: Path, run_extract: RunCommand, run_command: RunCommand, tmp_path: Path
) -> None:
    table = tmp_path / "clips.csv"
    table.write_text("video,split_s,start_s\npour/0.mp4,2,0\npour/0.mp4,2.5,2\npour/1.mkv,1.5,\n")
    outcome = run_extract(videos, tmp_path / "cache", "--clips", table)
    assert outcome.status == 0, outcome.stderr
    assert (outcome.json["videos"], outcome.json["clips"], outcome.json["extracted"]) == (2, 2, 2)
    (short,) = outcome.json["too_short"]
    assert short["where"] == f"{table}, row 2"
    assert "1 row is too short for a clip" in outcome.stderr
    info = run_command("thinkjepa-cache", "info", tmp_path / "cache")
    assert "row 2 too short: 0.47 s" in " ".join(info.stdout.split())
    by_rule = run_extract(videos, tmp_path / "cache", "--stride-s", "5")
    assert "took its clips from" in by_rule.stderr
    table.write_text("video,split_s\npour/9.mp4,2\n")
    refused = run_extract(videos, tmp_path / "cache", "--clips", table)
    assert refused.status == 2
    assert "row 1: there is no video 'pour/9.mp4'" in refused.stderr.strip().splitlines()[-1]


def test_a_project_sees_an_edited_table(tmp_path: Path) -> None:
    """By the manifest that `dvc repro` compares, and a table that is not there is named."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "0.mkv").write_bytes(b"any")
    (tmp_path / "params.yaml").write_text("videos: videos\ncache_dir: features\nclips_file: clips.csv\n")
    params = read_params(tmp_path / "params.yaml")
    assert params.clips_file == tmp_path / "clips.csv"

    def manifest() -> dict[str, Any]:
        memory = DigestMemory(tmp_path / "memory.json")
        return folder_manifest(
            params.videos, progress=NoProgress(), memory=memory, clips_file=params.clips_file
        )

    with pytest.raises(StageError, match=r"the table of clips .*clips.csv' cannot be read: No such file"):
        manifest()
    found = []
    for table in (EPISODES, EPISODES.replace("test", "train"), EPISODES):
        (tmp_path / "clips.csv").write_text(table)
        found.append(manifest())
    assert found[0] == found[2] != found[1]
    (tmp_path / "params.yaml").write_text("videos: videos\ncache_dir: features\nclips_file: [1]\n")
    with pytest.raises(SettingsError, match=r"clips_file holds \[1\], expected a path"):
        read_params(tmp_path / "params.yaml")
