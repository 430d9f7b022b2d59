"""Sets that keep more of the same states serve requests for fewer, and earlier caches stay readable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from thinkjepa.cache import ClipFeatures, ClipRow, FeatureCache, FeatureSet, WriteSession, describe_set
from thinkjepa.cache.disk.checksums import replace_listed
from thinkjepa.cache.disk.layout import index_dir
from thinkjepa.cache.tables.catalog import resolve_set
from thinkjepa.cache.tables.parquet import ADDED_COLUMNS
from thinkjepa.stages.extract.thinker.kept import Kept


def kept_set(kept: Kept, *, layers: tuple[int, ...] = (1, 5), prompt: str = "p") -> FeatureSet:
    return describe_set(
        "thinker",
        origin={"layers": list(layers), "prompt": prompt, "sampling": {"fingerprint": "t"}, **kept.origin},
        source={"model": "tiny"},
        arrays=kept.arrays(layers, width=8, dtype="float32"),
        shard_bytes=4,
        typical_clip_bytes=1,
    )


SLOTS = Kept(1, text=False, tokens=False)
ALL = Kept(1, text=True, tokens=True)
NONE = Kept(0, text=False, tokens=False)


@pytest.mark.parametrize(
    ("wanted", "held", "serves"),
    [
        (kept_set(SLOTS), kept_set(ALL), True),
        (kept_set(NONE), kept_set(SLOTS), True),
        (kept_set(NONE, layers=(5,)), kept_set(Kept(3, text=True, tokens=False)), True),
        (kept_set(ALL), kept_set(SLOTS), False),
        (kept_set(SLOTS), kept_set(Kept(2, text=True, tokens=True)), False),
        (kept_set(SLOTS, prompt="q"), kept_set(ALL), False),
        (kept_set(SLOTS, layers=(1, 9)), kept_set(ALL), False),
    ],
)
def test_a_set_with_more_serves_a_request_for_fewer(
    wanted: FeatureSet, held: FeatureSet, serves: bool
) -> None:
    found = resolve_set(wanted, {held.name: held})
    assert found.name == (held.name if serves else wanted.name)


def test_a_set_of_version_1_serves_none_that_wants_streams_and_is_named_by_its_own(
    thinker_set: Callable[..., FeatureSet],
) -> None:
    before = thinker_set()
    assert before.streams == ("prompt", "generated")
    assert kept_set(NONE).streams == ("prompt", "visual", "text", "last", "generated")
    wanted = kept_set(NONE, layers=(0, 1, 2))
    assert resolve_set(wanted, {before.name: before}).name == wanted.name


def test_a_cache_of_version_1_is_read_and_written_on(
    tmp_path: Path,
    thinker_set: Callable[..., FeatureSet],
    make_clip: Callable[..., ClipRow],
    make_features: Callable[..., ClipFeatures],
) -> None:
    """Its index has no lengths of slots and text, its clips no groups."""
    root, feature_set = tmp_path / "c", thinker_set()
    one, two = (make_features(feature_set, name) for name in ("v@4", "v@8"))
    with WriteSession(root) as session:
        session.add_clips([make_clip("v@4"), make_clip("v@8")])
        with session.writer(session.resolve(feature_set)) as writer:
            writer.append([one])
    for path in (*index_dir(root, feature_set.name).glob("*.parquet"), *(root / "clips").glob("*.parquet")):
        table = pq.read_table(path)
        pq.write_table(table.drop_columns([*{*ADDED_COLUMNS} & {*table.column_names}]), path)
        replace_listed(path, path.read_bytes())
    content = json.loads((root / "cache.json").read_bytes()) | {"schema": "thinkjepa.cache.v1"}
    replace_listed(root / "cache.json", json.dumps(content).encode())
    row = FeatureCache.open(root).index(feature_set.name)["v@4"]
    assert (row.token_count, row.slot_count, row.text_count, row.frame_width_px) == (70, 0, 0, 0)
    with WriteSession(root) as session, session.writer(session.resolve(feature_set)) as writer:
        writer.append([two])
    cache = FeatureCache.open(root)
    for item in (one, two):
        read = cache.read(feature_set.name, "tokens", [item.clip_id], tokens=70)[0]
        assert torch.equal(read, item.arrays["tokens"])
    assert cache.index(feature_set.name).count_tokens(["v@8", "v@4"], axis="slot").tolist() == [0, 0]


def test_a_length_that_is_not_the_clips_is_refused(tmp_path: Path, make_clip: Callable[..., ClipRow]) -> None:
    feature_set = kept_set(SLOTS)
    arrays = {
        "pooled": torch.ones(2, 5, 8),
        "slots": torch.ones(2, 3, 8),
        "slot_position": torch.full((3, 4), torch.nan),
    }
    with WriteSession(tmp_path / "c") as session:
        session.add_clips([make_clip("v@4"), make_clip("v@8")])
        with session.writer(session.resolve(feature_set)) as writer:
            refused = writer.append(
                [ClipFeatures("v@4", arrays, slot_count=2), ClipFeatures("v@8", arrays, slot_count=3)]
            )
    assert [item.clip_id for item in refused] == ["v@4"]
    assert "has 3 slots, the clip 2" in refused[0].reason
    cache = FeatureCache.open(tmp_path / "c")
    assert cache.read(feature_set.name, "slot_position", ["v@8"], tokens=3).isnan().all()
