"""A share of the training groups: nested, of whole groups, the same for every training seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from latent_cache import TINY_JEPA

from thinkjepa.cache import FeatureCache
from thinkjepa.stages.data.partition import SplitRule, planned_partition
from thinkjepa.stages.data.partitioned_clips import partition_clips, shared_groups, with_training_share
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.run import train
from thinkjepa.stages.train.settings import TrainSettings

BuildCache = Callable[..., Path]
BY_VIDEO = SplitRule(group_by="video")
SHARES = (0.001, 0.1, 0.3, 0.5, 0.9, 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_nested_and_rounded(seed: int) -> None:
    groups = [f"task{number}" for number in range(40)]
    found = [shared_groups(groups, share=share, seed=seed) for share in SHARES]
    assert [len(kept) for kept in found] == [1, 4, 12, 20, 36, 40]
    assert all(one <= other for one, other in pairwise(found))
    assert found[2] == shared_groups(reversed(groups), share=0.3, seed=seed)
    assert found[2] != shared_groups(groups, share=0.3, seed=seed + 1)


def test_only_training_clips_are_left_out_and_whole_groups(latent_cache: BuildCache) -> None:
    cache = FeatureCache.open(latent_cache())
    rows = cache.select(*cache.feature_sets)
    whole = partition_clips(rows, cache.path, BY_VIDEO, partition_of=planned_partition)
    assert with_training_share(whole, rows, share=1.0) is whole
    half = with_training_share(whole, rows, share=0.5)
    assert half.sizes["train"].groups == round(whole.sizes["train"].groups / 2)
    assert half.sizes["train"].clips == len(half.ids["train"]) == 2 * half.sizes["train"].videos
    for name in ("validation", "test"):
        assert half.ids[name] == whole.ids[name]
    assert half.warning == whole.warning


def test_a_run_records_its_share_and_its_clips(latent_cache: BuildCache, tmp_path: Path) -> None:
    cache, ids = latent_cache(), {}
    for seed, share in ((0, 0.3), (1, 0.3), (0, 1.0)):
        out = tmp_path / f"{seed}-{share}"
        train(
            cache,
            out,
            replace(TINY_JEPA, share=share, seed=seed),
            thinker_set=None,
            encoder_set=None,
            split=BY_VIDEO,
            progress=lambda **_: None,
        )
        record = json.loads((out / "run.json").read_text())
        ids[seed, share] = set(json.loads((out / "split.json").read_text())["clips"]["train"])
        assert record["settings"]["share"] == share
        assert record["clips"]["train"]["count"] == len(ids[seed, share])
    assert ids[0, 0.3] == ids[1, 0.3] < ids[0, 1.0]


@pytest.mark.parametrize("share", [0.0, 1.5, -0.1])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(StageError, match="--share"):
        TrainSettings(share=share)
