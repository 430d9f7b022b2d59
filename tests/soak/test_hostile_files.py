"""Every reader of files from elsewhere, with files that hypothesis damages or writes.

Each gives a typed error or a right value: never another exception, a signal, a hang, more than 512 MB, or the
content of another file. Seconds in CI. In soak, THINKJEPA_SOAK_MINUTES (10) are shared by all readers.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from thinkjepa.cache import FeatureCache, ThinkJepaError, VideoLabels, WriteSession, describe_set, verify
from thinkjepa.cache.records import ArraySpec
from thinkjepa.pipeline.project.params import params_text, read_given
from thinkjepa.pipeline.sample.episodes import read_archive
from thinkjepa.stages.data.labels.client import LabelProcess
from thinkjepa.stages.data.labels.contract import LabelError, check_values
from thinkjepa.stages.data.tracked_files import SELECTION_SCHEMA, Selection, read_selection, selected_clip_ids
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.extract.models.weights import find_model
from thinkjepa.stages.train.fit.state import ResumeFile, save_weights
from thinkjepa.stages.train.model.config import LatentGrid, ModelShape, TrunkShape
from thinkjepa.stages.train.model.forecast import build_model

MOST_BYTES = 512 * 2**20
SECRET = 777.0
"""Every number of a file next to those that are read: it is in none of their values."""

LONGEST = 20_000
"""Characters of an error."""

FEW = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
MINUTES = float(os.environ.get("THINKJEPA_SOAK_MINUTES", "10"))

HOSTILE_VALUES = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        2**31,
        2**63,
        10**30,
        1e308,
        "",
        "../../x",
        "/etc/passwd",
        "a\0b",
        "a" * 5000,
        [],
        {},
        [[]],
    ]
)
STRANGE_BYTES = st.sampled_from(
    [b"\0", b"\xff", b"\xff" * 8, b"\0" * 8, b"NaN", b"[" * 3000, b"1e999", b"\n", b","]
)


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, float, bytes]]:
    """A few damages: a kind, a place as a share of the file, bytes."""
    kinds = st.sampled_from(["flip", "write", "insert", "cut", "remove", "repeat"])
    content = st.one_of(st.binary(min_size=1, max_size=8), STRANGE_BYTES)
    one = st.tuples(kinds, st.floats(0, 1, exclude_max=True), content)
    return draw(st.lists(one, min_size=1, max_size=4))


def damaged(raw: bytes, damage: list[tuple[str, float, bytes]]) -> bytes:
    for kind, share, content in damage:
        at, size = int(share * len(raw)), len(content)
        if kind == "flip" and raw:
            raw = raw[:at] + bytes([raw[at] ^ (content[0] or 1)]) + raw[at + 1 :]
        elif kind == "cut":
            raw = raw[:at]
        else:
            middle = {
                "write": content,
                "insert": content,
                "remove": b"",
                "repeat": raw[at : at + 40 * size] * 2,
            }
            raw = raw[:at] + middle.get(kind, b"") + raw[at + (0 if kind == "insert" else size) :]
    return raw


Edit = tuple[float, Any]


def edited(value: Any, edits: list[Edit]) -> Any:
    """A copy of a JSON value, with hostile values in some places, or without some."""
    for share, replacement in edits:
        places = list(_places(value))
        container, key = places[int(share * len(places))]
        if replacement == "absent" and isinstance(container, dict):
            del container[key]
        else:
            container[key] = deepcopy(replacement)  # the next edit may be inside it
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inside in list(items):
        yield value, key
        if isinstance(inside, dict | list):
            yield from _places(inside)


EDITS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.one_of(HOSTILE_VALUES, st.just("absent"))),
    min_size=1,
    max_size=2,
)


@dataclass(frozen=True, slots=True)
class Reader:
    """A file, and what is read of it. `use` raises ThinkJepaError, or checks what it gets."""

    path: Path
    use: Callable[[], object]
    is_json: bool = False


def said(reader: Reader, content: bytes, before: bytes) -> str:
    """The typed error of a reader about a content of its file, or that it is right."""
    reader.path.write_bytes(content)
    try:
        reader.use()
    except ThinkJepaError as error:
        return str(error)
    finally:
        reader.path.write_bytes(before)
    return "right"


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Reader]]:
    """Label files of each format, read by one process with a short time-out."""
    folder, process = tmp_path_factory.mktemp("labels"), LabelProcess(timeout_s=10)
    numbers = np.linspace(0, 1, 12)
    columns = {"frame": np.arange(12) // 2, "joint": ["a", "b"] * 6, "x": numbers, "y": numbers, "z": numbers}
    for name, value in (("0", 0.5), ("secret", SECRET)):
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            for joint in ("camera", "rightHand"):
                file[f"transforms/{joint}"] = np.tile(np.eye(4), (3, 1, 1))
                file[f"transforms/{joint}"][:, 0, 3] = value
            file["confidences/rightHand"] = np.ones(3)
            file.attrs["llm_description"] = "text"
    pq.write_table(pa.table(columns), folder / "0.parquet")
    pyarrow.csv.write_csv(pa.table(columns), folder / "0.csv")
    (folder / "joints.csv").write_text(
        "video,frame,joint,x,y,z\n"
        + "".join(f"{video}.mp4,{frame},a,0,0,1\n" for video in "01" for frame in range(3))
    )

    def use(name: str, rows_of: str | None = None) -> None:
        found = process.read(folder / name, rows_of=rows_of)
        check_values(found)
        assert not (found.positions_m == SECRET).any()
        assert found.confidences.shape == found.positions_m.shape[:2]
        assert process.pid
        status = Path(f"/proc/{process.pid}/status").read_text().split("VmHWM:")[1]
        assert int(status.split()[0]) * 1024 < MOST_BYTES

    yield {
        **{
            name: Reader(folder / name, lambda name=name: use(name))
            for name in ("0.hdf5", "0.parquet", "0.csv")
        },  # type: ignore[misc]
        "joints.csv": Reader(folder / "joints.csv", lambda: use("joints.csv", "0.mp4")),
    }
    process.close()


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    """A cache, a run, a selection, models and archives."""
    root = tmp_path_factory.mktemp("records")
    return {**_cache(root), **_run(root), **_models(root), **_selection(root), **_archive(root)}


def _cache(root: Path) -> dict[str, Reader]:
    spec = ArraySpec("observed", ("time", "patch", "dim"), (2, 4, 8), (1, 4, 8), "float16")
    described = describe_set(
        "encoder",
        origin={"weights": "a"},
        source={"model": "m"},
        arrays=(spec,),
        shard_bytes=10,
        typical_clip_bytes=1,
    )
    cache = root / "cache"
    numbers = np.full((3, 1, 3), 0.5, np.float32)
    with WriteSession(cache) as session:
        with session.writer(session.resolve(described)):
            session.add_clips([])
        session.add_labels(
            [VideoLabels("t", "camera", ("a",), numbers, numbers[..., 0], video_digest="0" * 64)]
        )
    ledger = (cache / "checksums.jsonl").read_bytes()

    def catalog() -> None:
        (cache / "checksums.jsonl").unlink(missing_ok=True)
        try:
            for item in FeatureCache.open(cache).feature_sets.values():
                assert all(isinstance(layer, int) for layer in item.layers)
                assert all(spec.clip_bytes >= 0 and spec.chunk_grid for spec in item.arrays.values())
            verify(cache, full=True, advance=lambda count: None)
        finally:
            (cache / "checksums.jsonl").write_bytes(ledger)

    def listed() -> None:
        table = FeatureCache.open(cache).labels
        assert [(item.joint_names, item.positions_m.tolist()) for item in table] == [
            (("a",), numbers.tolist())
        ]

    return {
        "cache.json": Reader(cache / "cache.json", catalog, is_json=True),
        "checksums.jsonl": Reader(
            cache / "checksums.jsonl", lambda: verify(cache, full=True, advance=lambda _: None)
        ),
        "labels.arrow": Reader(cache / "labels" / "000000.arrow", listed),
    }


def _run(root: Path) -> dict[str, Reader]:
    run, shape = root / "run", ModelShape("jepa", LatentGrid(1, 1, 2, 2, 8), TrunkShape(1, 24, 2), None, 16)
    checkpoint = save_weights(run, build_model(shape, seed=0).state_dict())
    record = {
        "schema": "thinkjepa.run.v2",
        "cache": "features",
        "settings": {"seed": 0, "clips_per_forward": 4, "guidance_source": "own", "min_confidence": 0.0},
        "feature_sets": {"encoder": {"name": "encoder-0", "fingerprint": "0", "layers": []}, "thinker": None},
        "model": json.loads(json.dumps(asdict(shape))),
        "labels": "",
        "checkpoint": asdict(checkpoint),
        "split_sha256": "",
        "reference_frames": [],
    }
    clips = {"train": ["a@8"], "validation": ["b@8"], "test": ["c@8"]}
    (run / "run.json").write_text(json.dumps(record))
    (run / "split.json").write_text(json.dumps({"rule": {}, "grouping": "video", "clips": clips}))
    save_file(
        {"x": torch.zeros(2)},
        run / "resume.safetensors",
        metadata={"key": "k", "curve": "[]", "partial": "[]"},
    )

    def use() -> None:
        found = TrainedRun.open(run)
        assert found.shape.trunk.depth >= 1
        _ = found.trained_on, found.guidance_source, found.clips_per_forward, found.min_confidence
        found.model()

    def resume() -> None:
        file = ResumeFile(run / "resume.safetensors", "k")
        _ = file.peek(), file.found_record(), file.threads()

    return {
        "run.json": Reader(run / "run.json", use, is_json=True),
        "split.json": Reader(run / "split.json", use, is_json=True),
        "checkpoint": Reader(run / checkpoint.file, use),
        "resume.safetensors": Reader(run / "resume.safetensors", resume),
    }


def _models(root: Path) -> dict[str, Reader]:
    model = root / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    save_file({"x": torch.zeros(2)}, model / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": {"x": "model-1.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))

    def use() -> None:
        find_model(str(model), revision="", role="encoder")

    return {
        "weights": Reader(model / "model-1.safetensors", use),
        "index": Reader(model / "model.safetensors.index.json", use, is_json=True),
    }


def _selection(root: Path) -> dict[str, Reader]:
    cache, path = root / "selected", root / "selection.json"
    names = {"thinker": "thinker-" + "0" * 12, "encoder": "encoder-" + "1" * 12}
    made = Selection(SELECTION_SCHEMA, **names, num_clips=1, clips="a" * 64, names="b" * 64)
    path.write_text(json.dumps(asdict(made)))
    (cache / "selections").mkdir(parents=True)
    (cache / "selections" / f"{'a' * 12}.json").write_text('{"clip_ids": ["a@8"]}')
    (root / "params.yaml").write_text(params_text())

    def use() -> None:
        assert selected_clip_ids(cache, read_selection(path)) == ["a@8"]

    return {
        "selection.json": Reader(path, use, is_json=True),
        "params.yaml": Reader(root / "params.yaml", lambda: read_given(root / "params.yaml")),
    }


def _archive(root: Path) -> dict[str, Reader]:
    from importlib.resources import files

    path = root / "poses.npz"
    path.write_bytes((files("thinkjepa.pipeline.sample") / "hands" / "poses.npz").read_bytes())
    return {"poses.npz": Reader(path, lambda: read_archive(path))}


LABELS = ("0.hdf5", "0.parquet", "0.csv", "joints.csv")
RECORDS = (
    *("cache.json", "checksums.jsonl", "labels.arrow", "run.json", "split.json", "checkpoint", "weights"),
    *("resume.safetensors", "index", "selection.json", "params.yaml", "poses.npz"),
)


def fuzz(reader: Reader, how: settings) -> None:
    """Damaged bytes, and for JSON also edited values."""
    before = reader.path.read_bytes()
    reader.use()

    @how
    @given(damages())
    def damage_bytes(damage: list[tuple[str, float, bytes]]) -> None:
        assert 0 < len(said(reader, damaged(before, damage), before)) < LONGEST

    @how
    @given(EDITS)
    def edit_values(edits: list[Edit]) -> None:
        content = json.dumps(edited(json.loads(before), edits)).encode()
        assert 0 < len(said(reader, content, before)) < LONGEST

    process = psutil.Process()
    resident = process.memory_info().rss
    damage_bytes()
    if reader.is_json:
        edit_values()
    assert process.memory_info().rss - resident < MOST_BYTES


@pytest.mark.parametrize("name", LABELS)
def test_a_damaged_label_file_is_a_typed_error_or_right(labels: dict[str, Reader], name: str) -> None:
    fuzz(labels[name], FEW)


@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_is_a_typed_error_or_right(records: dict[str, Reader], name: str) -> None:
    fuzz(records[name], FEW)


@pytest.mark.soak
def test_no_damage_of_ten_minutes_is_another_error(
    labels: dict[str, Reader], records: dict[str, Reader]
) -> None:
    """Other damages in each run: what it finds, hypothesis prints."""
    many = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    readers, end = {**labels, **records}, time.monotonic() + 60 * MINUTES
    while time.monotonic() < end:
        for reader in readers.values():
            if time.monotonic() < end:
                fuzz(reader, many)


def test_label_errors_name_no_other_files(labels: dict[str, Reader]) -> None:
    reader = labels["0.hdf5"]
    before = reader.path.read_bytes()
    with h5py.File(reader.path, "r+") as file:
        del file["transforms/rightHand"]
        file["transforms/rightHand"] = h5py.ExternalLink("secret.hdf5", "transforms/rightHand")
    with pytest.raises(LabelError, match="is a link: not followed"):
        reader.use()
    reader.path.write_bytes(before)
