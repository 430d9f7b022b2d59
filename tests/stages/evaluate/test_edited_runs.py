"""Files of a run that somebody edited or sent: each is read, or refused in one line that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.json_files import write_json
from thinkjepa.stages.train.fit.state import ResumeFile, save_weights
from thinkjepa.stages.train.model.config import ModelShape
from thinkjepa.stages.train.model.forecast import build_model

BuildShape = Callable[..., ModelShape]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def run_dir(tmp_path: Path, model_shape: BuildShape) -> Path:
    """The files of a finished run of an untrained model that an evaluation reads."""
    shape, folder = model_shape("jepa"), tmp_path / "run"
    checkpoint = save_weights(folder, build_model(shape, seed=0).state_dict())
    record = {
        "schema": "thinkjepa.run.v2",
        "cache": "features",
        "settings": {"seed": 0, "clips_per_forward": 4, "guidance_source": "own"},
        "feature_sets": {
            "encoder": {"name": "encoder-" + "0" * 12, "fingerprint": "0" * 64},
            "thinker": None,
        },
        "model": asdict(shape),
        "labels": "",
        "checkpoint": asdict(checkpoint),
        "split_sha256": "0" * 64,
        "reference_frames": [],
    }
    write_json(folder / "run.json", record)
    clips = {"train": ["a@8"], "validation": ["b@8"], "test": ["c@8"]}
    write_json(folder / "split.json", {"rule": {}, "grouping": "video", "clips": clips})
    return folder


def edit(path: Path, change: Change) -> None:
    record = json.loads(path.read_bytes())
    change(record)
    path.write_text(json.dumps(record))


def test_a_run_is_read_as_it_is(run_dir: Path, model_shape: BuildShape) -> None:
    run = TrainedRun.open(run_dir)
    assert run.shape == model_shape("jepa")
    assert run.clip_ids("test") == ("c@8",)
    weights = build_model(run.shape, seed=0).state_dict()
    for name, value in run.model().state_dict().items():
        assert torch.equal(value, weights[name])


def test_keys_of_a_later_version_are_left_alone(run_dir: Path) -> None:
    edit(run_dir / "run.json", lambda record: record.update(later={"a": 1}))
    assert TrainedRun.open(run_dir).record["later"] == {"a": 1}


RUNS: dict[str, Change] = {
    "no model": lambda record: record.pop("model"),
    "model in a list": lambda record: record.update(model=[]),
    "unknown variant": lambda record: record["model"].update(variant="gpt"),
    "no width": lambda record: record["model"]["trunk"].pop("width"),
    "width in words": lambda record: record["model"]["trunk"].update(width="wide"),
    "huge width": lambda record: record["model"]["trunk"].update(width=24 * 2**50),
    "huge depth": lambda record: record["model"]["trunk"].update(depth=2**40),
    "many blocks": lambda record: record["model"]["trunk"].update(depth=60_000),
    "negative depth": lambda record: record["model"]["trunk"].update(depth=-3),
    "huge grid": lambda record: record["model"]["grid"].update(height=2**30),
    "guidance in words": lambda record: record["model"].update(guidance="film"),
    "empty grid": lambda record: record["model"]["grid"].update(dim=0),
    "no tokens": lambda record: record["model"]["guidance"].update(cross_tokens=None),
    "no settings": lambda record: record.pop("settings"),
    "no clip a forward": lambda record: record["settings"].update(clips_per_forward=0),
    "seed in words": lambda record: record["settings"].update(seed="zero"),
    "weights upwards": lambda record: record["checkpoint"].update(file="../../secret.safetensors"),
    "weights upwards inside": lambda record: record["checkpoint"].update(
        file="checkpoints/../../x.safetensors"
    ),
    "weights absolute": lambda record: record["checkpoint"].update(file="/etc/passwd"),
    "weights of another name": lambda record: record["checkpoint"].update(file="checkpoints/model.pickle"),
    "no digest": lambda record: record["checkpoint"].update(sha256=""),
    "more of a checkpoint": lambda record: record.update(checkpoint=["file"]),
    "no sets": lambda record: record.update(feature_sets={}),
    "sets in a list": lambda record: record.update(feature_sets=[1]),
    "layers in words": lambda record: record["feature_sets"]["encoder"].update(layers="all"),
    "labels in a number": lambda record: record.update(labels=7),
    "a cache that is no path": lambda record: record.update(cache="a\0b"),
    "a long cache": lambda record: record.update(cache="a" * 5000),
    "another schema": lambda record: record.update(schema=["thinkjepa.run.v2"]),
}


@pytest.mark.parametrize("change", RUNS.values(), ids=RUNS)
def test_an_edited_run_is_refused_in_one_line(run_dir: Path, change: Change) -> None:
    edit(run_dir / "run.json", change)
    with pytest.raises(StageError, match=r"run'? ?.*(changed by hand|has schema)") as raised:
        TrainedRun.open(run_dir)
    assert str(run_dir) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


CONTENTS = {
    "NaN": b'{"schema": NaN}',
    "deep": b"[" * 100_000,
    "UTF-16": '{"schema": "thinkjepa.run.v2"}'.encode("utf-16"),
    "a list": b"[]",
    "empty": b"",
}


@pytest.mark.parametrize("name", ["run.json", "split.json"])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_file_that_is_no_record_is_refused_in_one_line(run_dir: Path, name: str, content: bytes) -> None:
    (run_dir / name).write_bytes(content)
    with pytest.raises(StageError, match=rf"{name}'"):
        TrainedRun.open(run_dir).clip_ids("test")


SPLITS: dict[str, Change] = {
    "no clips": lambda record: record.pop("clips"),
    "no test": lambda record: record["clips"].pop("test"),
    "clips in a text": lambda record: record["clips"].update(test="c@8"),
    "clips in numbers": lambda record: record["clips"].update(test=[1]),
    "no grouping": lambda record: record.pop("grouping"),
}


@pytest.mark.parametrize("change", SPLITS.values(), ids=SPLITS)
def test_an_edited_split_is_refused_in_one_line(run_dir: Path, change: Change) -> None:
    edit(run_dir / "split.json", change)
    with pytest.raises(StageError, match=r"split\.json' is damaged or was changed by hand"):
        TrainedRun.open(run_dir).clip_ids("test")


def test_sizes_that_the_weights_do_not_have_take_no_memory(run_dir: Path) -> None:
    """A width of 65,520 would take 100 GB."""
    edit(run_dir / "run.json", lambda record: record["model"]["trunk"].update(width=65_520, depth=1))
    run = TrainedRun.open(run_dir)
    with pytest.raises(StageError, match=r"are not of the model that run\.json describes \(.* expected \("):
        run.model()


def test_weights_of_another_content_are_refused_before_they_are_parsed(run_dir: Path) -> None:
    weights = next((run_dir / "checkpoints").iterdir())
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(StageError, match="the file is damaged or from another run"):
        TrainedRun.open(run_dir).model()


@pytest.mark.parametrize(
    "header",
    [
        {"curve": "[", "partial": "[]"},
        {"curve": "[[1]]", "partial": "[]"},
        {"curve": '[{"epoch": 0}]', "partial": "[]"},
        {"curve": "[]", "partial": "7"},
        {"curve": "[]", "partial": "[0, 0, 0, 0, 0, 0]"},
        {},
    ],
)
def test_an_edited_state_of_an_unfinished_run_is_refused_in_one_line(
    tmp_path: Path, header: dict[str, str]
) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "resume.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"key": "k", "record": "[", "threads": "two", **header})
    file = ResumeFile(path, "k")
    for read in (file.peek, file.found_record, file.threads):
        with pytest.raises(StageError, match=r"resume\.safetensors' is damaged or was changed by hand"):
            read()
