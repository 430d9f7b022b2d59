"""Runs are kept where experiments end, and shown where DVC looks."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from latent_cache import BuildShape

from thinkjepa.pipeline.project.run_store import find_kept, kept_name, show_run
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.data.tracked_files import Selection
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.plan import RUN_SCHEMA
from thinkjepa.stages.train.settings import TrainSettings

SELECTION = Selection("s", "thinker-1", "encoder-1", num_clips=3, clips="c", names="n")
WEIGHTS = "checkpoints/model-0.safetensors"

SETTINGS = {"seed": 0, "clips_per_forward": 4}


def kept(folder: Path, **record: object) -> Path:
    """A finished run of this record; two settings may end in the same weights."""
    whole = {
        "schema": RUN_SCHEMA,
        "checkpoint": {"file": WEIGHTS, "sha256": "0" * 64},
        "cache": "a",
        "feature_sets": {"encoder": {"name": "encoder-1", "fingerprint": "1"}},
        "labels": "",
        "split_sha256": "2",
        **record,
    }
    (folder / "checkpoints").mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(b"weights")
    (folder / "run.json").write_text(json.dumps(whole))
    return folder


def test_a_name_follows_from_all_that_determines_a_run() -> None:
    settings, split = TrainSettings(seed=3), SplitRule()
    name = kept_name(settings, split, SELECTION, None)
    assert name == kept_name(settings, split, SELECTION, None)
    assert name.startswith("thinkjepa-3-")
    others = {
        kept_name(replace(settings, depth=6), split, SELECTION, None),
        kept_name(settings, replace(split, split_seed=1), SELECTION, None),
        kept_name(settings, split, replace(SELECTION, clips="d"), None),
        kept_name(settings, split, replace(SELECTION, labels="l"), None),
    }
    assert len({name, *others}) == 5


def test_the_history_counts_in_runs_that_it_guides() -> None:
    own, guided = TrainSettings(), TrainSettings(guidance_source="history")
    for settings, names in ((own, 1), (guided, 2)):
        selections = (SELECTION, replace(SELECTION, history="h"))
        assert len({kept_name(settings, SplitRule(), item, None) for item in selections}) == names


def test_a_run_is_found_by_its_record_wherever_its_cache_was(tmp_path: Path, model_shape: BuildShape) -> None:
    model = asdict(model_shape("jepa"))
    kept(tmp_path / "runs" / "one", model=model, settings={**SETTINGS, "guidance": "film"})
    other = kept(tmp_path / "runs" / "two", model=model, settings={**SETTINGS, "guidance": "adaln"})
    shown = tmp_path / "shown"
    show_run(other, shown)
    record = json.loads((shown / "run.json").read_text())
    (shown / "run.json").write_text(json.dumps({**record, "cache": "/moved"}))
    assert find_kept(tmp_path / "runs", shown) == other
    assert (shown / WEIGHTS).samefile(other / WEIGHTS)
    (other / WEIGHTS).unlink()
    with pytest.raises(StageError, match="it was removed; train again"):
        find_kept(tmp_path / "runs", shown)
