"""A cache of unknown origin: no name or link in it leads to reads, writes or removals outside of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thinkjepa.cache import (
    CacheError,
    ClipFeatures,
    ClipRow,
    FeatureCache,
    FeatureSet,
    WriteSession,
    plan_clip_removal,
    remove,
    verify,
)
from thinkjepa.cache.disk.lines import encoded

TreeDigest = Callable[[Path], dict[str, str]]
CLIPS = ["a@4", "b@4"]


@pytest.fixture(params=["none", "zstd"])
def filled(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    encoder_set: Callable[..., FeatureSet],
    make_features: Callable[..., ClipFeatures],
    make_clip: Callable[..., ClipRow],
) -> Path:
    root, wanted = tmp_path / "cache", encoder_set(rows=1, codec=request.param)
    with WriteSession(root) as session:
        session.add_clips([make_clip(name) for name in CLIPS])
        with session.writer(session.resolve(wanted)) as writer:
            writer.append([make_features(wanted, name) for name in CLIPS])
    return root


def edit_catalog(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit cache.json with a valid checksum in the ledger. An unlisted file would be read as it is."""
    content = json.loads((root / "cache.json").read_bytes())
    change(content["feature_sets"][0])
    (root / "cache.json").write_text(json.dumps(content))
    (root / "checksums.jsonl").unlink()


def rename_array(record: dict[str, Any], name: str) -> None:
    record["arrays"] = {name: {**record["arrays"]["observed"], "name": name}}


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "upwards": lambda record: record.update(name="../../outside"),
    "absolute": lambda record: record.update(name="/etc"),
    "upwards after a kind": lambda record: record.update(name="encoder-/../../outside"),
    "line break": lambda record: record.update(name=record["name"] + "\n"),
    "long": lambda record: record.update(name="encoder-" + "a" * 300),
    "another kind": lambda record: record.update(kind="thinker"),
    "no text": lambda record: record.update(name=7),
    "array upwards": lambda record: rename_array(record, "../../../../outside"),
    "array absolute": lambda record: rename_array(record, "/etc/passwd"),
    "array not in ASCII": lambda record: rename_array(record, "obsérved"),
    "array under another's name": lambda record: record["arrays"]["observed"].update(name="future"),
    "negative shape": lambda record: record["arrays"]["observed"].update(shape=[-1, 4, 8]),
    "empty chunks": lambda record: record["arrays"]["observed"].update(chunks=[0, 4, 8]),
    "no clip a shard": lambda record: record.update(rows_per_shard=0),
    "no arrays": lambda record: record.pop("arrays"),
    "arrays in a list": lambda record: record.update(arrays=[]),
    "more than there is": lambda record: record.update(extra=1),
    "huge shape": lambda record: record["arrays"]["observed"].update(shape=[2**40, 4, 8]),
    "huge chunks": lambda record: record["arrays"]["observed"].update(chunks=[2**40, 4, 8]),
    "axes that are no names": lambda record: record["arrays"]["observed"].update(dims=[1, 2, 3]),
    "text for axes": lambda record: record["arrays"]["observed"].update(dims="abc", shape="abc"),
    "many clips a shard": lambda record: record.update(rows_per_shard=2**60),
    "unknown codec": lambda record: record["arrays"]["observed"].update(codec="zip"),
    "unknown encoding": lambda record: record["arrays"]["observed"].update(encoding="fp4"),
    "origin in a list": lambda record: record.update(origin=[]),
    "origin in a text": lambda record: record.update(origin="here"),
    "source in a text": lambda record: record.update(source="here"),
    "layers in words": lambda record: record["origin"].update(layers=["one"]),
    "layers in a number": lambda record: record["origin"].update(layers=5),
    "no fingerprint": lambda record: record.update(fingerprint="../.."),
    "no record": lambda record: record.clear(),
}

CONTENTS = {
    "NaN": lambda text: text.replace("4,", "NaN,", 1),
    "deep": lambda text: text.replace("4,", "[" * 50_000 + "]" * 50_000 + ",", 1),
    "half a pair": lambda text: text.replace('"observed"', '"\\ud800"', 1),
    "cut": lambda text: text[: len(text) // 2],
    "a list": lambda text: f"[{text}]",
    "no sets": lambda text: '{"schema": "thinkjepa.cache.v2"}',
    "sets in words": lambda text: '{"schema": "thinkjepa.cache.v2", "feature_sets": "all"}',
    "a schema that is none": lambda text: '{"schema": ["thinkjepa.cache.v2"], "feature_sets": []}',
}


@pytest.mark.parametrize("change", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_catalog_that_is_no_json_of_ours_is_one_clear_error(
    filled: Path, change: Callable[[str], str], encoding: str
) -> None:
    text = (filled / "cache.json").read_text()
    (filled / "cache.json").write_bytes(change(text).encode(encoding))
    (filled / "checksums.jsonl").unlink()
    with pytest.raises(
        CacheError, match=r"cache\.json' is damaged or was changed by hand|has schema"
    ) as raised:
        FeatureCache.open(filled)
    assert len(str(raised.value)) < 1000


def test_a_ledger_that_names_files_outside_reads_none_of_them(filled: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    entry = {"state": "written", "bytes": 1, "crc32c": "00000000"}
    named = [{"file": name, **entry} for name in ("../secret", str(tmp_path / "secret"), "a\0b", 7)]
    with (filled / "checksums.jsonl").open("ab") as ledger:
        ledger.write(encoded([*named, {"unknown": 1}]))
    problems = [item.reason for item in verify(filled, full=False, advance=lambda count: None)]
    assert len(problems) == len(named) + 1
    assert all("is none of a file" in reason for reason in problems)
    assert FeatureCache.open(filled).select().clip_ids.to_pylist() == CLIPS


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_catalog_edited_by_hand_is_one_clear_error(
    filled: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edit_catalog(filled, change)
    with pytest.raises(CacheError, match=r"cache\.json' is damaged or was changed by hand"):
        FeatureCache.open(filled)
    with pytest.raises(CacheError, match=r"cache\.json' is damaged or was changed by hand"):
        with WriteSession(filled):
            pass


def test_a_harmless_edit_is_none(filled: Path) -> None:
    edit_catalog(filled, lambda record: record["source"].update(note="from a friend"))
    assert FeatureCache.open(filled).select().clip_ids.to_pylist() == CLIPS


def use(root: Path) -> None:
    """Everything that reads, writes or removes."""
    cache = FeatureCache.open(root)
    name = cache.choose_set("encoder").name
    for array in cache.feature_sets[name].arrays:
        cache.read(name, array, CLIPS)
    with WriteSession(root) as session:
        remove(session, plan_clip_removal(cache, CLIPS), labels=True)


@pytest.mark.parametrize(
    "pattern",
    [
        ".lock",
        "cache.json",
        "checksums.jsonl",
        "clips",
        "clips/000000.parquet",
        "encoder-*/index",
        "features.zarr",
        "features.zarr/encoder-*",
        "features.zarr/encoder-*/observed",
        "features.zarr/encoder-*/observed/zarr.json",
        "features.zarr/encoder-*/observed/c",
        "features.zarr/encoder-*/observed/c/1",
        "features.zarr/encoder-*/observed/c/1/0/0/0",
    ],
)
def test_a_link_out_of_the_cache_is_never_followed(
    filled: Path, tmp_path: Path, pattern: str, tree_digest: TreeDigest
) -> None:
    (path,) = filled.glob(pattern)
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.move(path, outside / "moved")
    path.symlink_to(outside / "moved")
    before = tree_digest(outside)
    with pytest.raises(CacheError, match=r"is a link that leads out of the cache, to '.*outside/moved"):
        use(filled)
    with pytest.raises(CacheError, match="is a link that leads out of the cache"):
        with WriteSession(filled) as session:
            remove(session, plan_clip_removal(FeatureCache.open(filled), CLIPS), labels=True)
    assert tree_digest(outside) == before


def test_links_inside_and_to_the_cache_are_followed(filled: Path, tmp_path: Path) -> None:
    (index,) = filled.glob("encoder-*/index")
    index.rename(index.with_name("elsewhere"))
    index.symlink_to("elsewhere")
    (tmp_path / "link").symlink_to(filled)
    use(tmp_path / "link")
