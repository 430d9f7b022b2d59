"""Every flag of thinkjepa-train runs through the command, on the sample of a hand.

A new setting without a case here fails a test. Each case runs in this process, as starting one costs seconds;
the soak test, of every pair of values, starts the installed command.
"""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from itertools import combinations, product
from pathlib import Path
from typing import Any

import h5py
import pytest
from transformers import VJEPA2Config, VJEPA2Model

from thinkjepa.cache import FeatureCache
from thinkjepa.pipeline.cli import train as train_app
from thinkjepa.pipeline.sample.expand import expand_shipped
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.data.tracked_files import make_selection, write_selection
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.extract.run import extract
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings
from thinkjepa.stages.progress import NoProgress
from thinkjepa.stages.train.fit import tracking as curve
from thinkjepa.stages.train.settings import TrainSettings

NUM_VIDEOS = 8
TINY = {
    "epochs": 1,
    "batch_size": 4,
    "depth": 2,
    "width": 24,
    "heads": 2,
    "fusion_width": 16,
    "head_width": 16,
    "learning_rate": 1e-3,
    "gate_learning_rate": 1e-2,
    "latent_pool": 2,
    "device": "cpu",
    "group_by": "video",
    "validation_fraction": 0.25,
    "test_fraction": 0.25,
}

CHECKPOINT = "a checkpoint of the predictor's shape"

CASES: dict[str, tuple[object, ...]] = {
    "preset": ("paper", "release"),
    "variant": ("jepa", "vlm", "poses"),
    "task": ("latent", "trajectory"),
    "select_by": ("joints", "latents", "loss"),
    "joints": ("keypoints", "all", "rightHand,rightThumbTip"),
    "min_confidence": (0.5,),
    "anchor": ("last_pose",),
    "head_inputs": ("latents",),
    "drop_poses": (0.5,),
    "head_width": (32,),
    "reader_depth": (1,),
    "share": (0.5,),
    "seed": (1,),
    "threads": (2,),
    "device": ("auto",),
    "precision": ("bf16",),
    "save_every_s": (0.0,),
    "tracker": ("none",),
    "epochs": (2,),
    "batch_size": (3,),
    "clips_per_forward": (1,),
    "learning_rate": (3e-3,),
    "head_learning_rate": (1e-2,),
    "gate_learning_rate": (1e-1,),
    "schedule": ("cosine", "paper"),
    "warmup": (0.5,),
    "clip_norm": (0.01,),
    "weight_decay": (1.0,),
    "guidance": ("adaln", "cross", "spatial"),
    "guidance_form": ("paper",),
    "levels": ("mixture",),
    "use_levels": ("last", "middle"),
    "use_streams": ("prompt", "visual,last", "prompt,generated"),
    "cross_tokens": ("slots", "slots,text", "text,generated", "visual", "prompt,reasoning"),
    "guidance_source": ("none",),  # others need more videos, or a table: test_sources.py
    "oracle_table": ("table.csv",),
    "drop_guidance": (0.5,),
    "fusion_width": (8,),
    "latent_loss": ("l1", "smooth_l1"),
    "normalise_targets": (True,),
    "next_step_weight": (0.5,),
    "rollout_windows": (2,),
    "latent_weight": (0.5,),
    "trajectory_weight": (10.0,),
    "trajectory_units": ("metres",),
    "depth": (1,),
    "width": (36,),
    "heads": (1,),
    "attention": ("bidirectional",),
    "attention_kernel": ("blocks",),  # flex is refused without a GPU: test_flex_attention.py
    "latent_pool": (1,),
    "latent_target": ("latents",),
    "whiten_latents": (True,),
    "init_from": (CHECKPOINT,),
    "group_by": ("folder",),
    "partition": ("official",),
    "validation_fraction": (0.4,),
    "test_fraction": (0.4,),
    "split_seed": (1,),
}
"""Values other than the default of each setting."""

BESIDE: dict[str, dict[str, object]] = {
    "anchor": {"head_inputs": "latents"},
    "cross_tokens": {"guidance": "cross"},
    "reader_depth": {"variant": "poses"},
    "warmup": {"epochs": 2},
    "weight_decay": {"epochs": 2},
}
"""What a setting needs beside it to do anything."""

CHANGES_NO_NUMBER = (
    "attention_kernel",
    "clips_per_forward",
    "device",
    "oracle_table",  # read for an oracle only: test_sources.py
    "save_every_s",
    "threads",
    "tracker",
)
"""Settings that say how, not what: the same validation loss, up to the order of sums."""

AS_THE_DEFAULT = (
    ("task", "trajectory"),
    ("joints", "all"),
    *(("select_by", figure) for figure in ("joints", "latents", "loss")),  # of one epoch
)
"""Values that the default comes to on clips with labels."""

Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Path:
    """A folder with `features`, a cache of one video of each task, `selection.json` and `checkpoint`."""
    folder = tmp_path_factory.mktemp("sample")
    expand_shipped(folder / "all")
    tasks = sorted(path for path in (folder / "all").iterdir() if path.is_dir())[:NUM_VIDEOS]
    for number, task in enumerate(tasks):
        video, top = min(task.glob("*.mp4")), "test" if number == 0 else "part1"
        (folder / "videos" / top / task.name).mkdir(parents=True)
        with h5py.File(video.with_suffix(".hdf5"), "r+") as labels:
            labels["confidences/rightThumbTip"][::2] = 0.4
        for file in (video, video.with_suffix(".hdf5")):
            shutil.move(file, folder / "videos" / top / task.name / file.name)
    report = extract(
        folder / "videos",
        folder / "features",
        clips=ClipSettings(
            thinker_frames=4, observed_frames=4, future_frames=4, future_windows=2, dense_fps=10.0
        ),
        models=ModelSettings(
            thinker=str(tiny_models / "thinker"),
            encoder=str(tiny_models / "encoder"),
            keep="pooled,slots,text,tokens",
        ),
        execution=ExecutionSettings(device="cpu"),
        progress=NoProgress(),
    )
    selection = make_selection(
        folder / "features",
        thinker_set=report.thinker_set,
        encoder_set=report.encoder_set,
        clip_ids=report.clip_ids[2:],
    )
    write_selection(folder / "selection.json", selection)
    encoder = json.loads((tiny_models / "encoder" / "config.json").read_text())
    sizes = {"pred_hidden_size": 24, "pred_num_hidden_layers": 2, "pred_num_attention_heads": 2}
    config = VJEPA2Config(**{**encoder, **sizes, "pred_mlp_ratio": 4.0})
    VJEPA2Model(config).save_pretrained(folder / "checkpoint")
    return folder


@pytest.fixture
def train(sample: Path, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Train:
    """A function that runs the command with these settings, and returns what it prints as JSON.

    Curves are not drawn: three quarters of the time of so small a run.
    """
    monkeypatch.setattr(curve, "_picture", lambda *_: b"")
    numbers = iter(range(1000))

    def run(*flags: str, **settings: object) -> dict[str, Any]:
        chosen = {**TINY, **settings}
        if chosen.get("init_from") == CHECKPOINT:
            chosen["init_from"] = sample / "checkpoint"
        out = tmp_path / f"run{next(numbers)}"
        line = ["thinkjepa-train", "--cache-dir", str(sample / "features"), "--out", str(out), "--json"]
        monkeypatch.setattr(sys, "argv", [*line, *flags, *as_flags(chosen)])
        with pytest.raises(SystemExit) as stop:
            train_app.main()
        captured = capsys.readouterr()
        assert stop.value.code == 0, captured.err
        return {"out": out, **json.loads(captured.out)}

    return run


def as_flags(settings: Mapping[str, object]) -> Iterator[str]:
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        yield from (flag,) if value is True else (flag, str(value))


@pytest.fixture(scope="module")
def baselines() -> dict[str, dict[str, Any]]:
    """Runs without a setting, by what stands beside it, filled as they are needed."""
    return {}


def test_every_setting_has_a_case() -> None:
    names = {item.name: item.default for kind in (TrainSettings, SplitRule) for item in fields(kind)}
    assert set(CASES) == set(names), "give a new setting a value in CASES"
    usual = {**names, **TINY}
    for name, values in CASES.items():
        if name != "attention_kernel":
            assert usual[name] not in values, f"{name}: a value other than the one that all runs have"


def test_every_other_flag_of_the_command_has_a_test() -> None:
    """A flag that is no setting is named in a test of this file or of those next to it."""
    own = set(inspect.signature(train_app.train_command).parameters) - set(CASES) - {"context"}
    assert own == {"cache_dir", "out", "feature_set", "selection", "plan", "json", "params"}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in CASES.items() for value in values], ids=str
)
def test_a_flag_runs_and_does_something(
    train: Train, baselines: dict[str, dict[str, Any]], name: str, value: object
) -> None:
    beside = BESIDE.get(name, {})
    if (key := json.dumps(beside)) not in baselines:
        baselines[key] = train(**beside)
    plain, found = baselines[key], train(**{**beside, name: value})
    assert found["validation_loss"] > 0
    record = json.loads((found["out"] / "run.json").read_text())
    if name in record["settings"] and name not in ("task", "init_from"):  # these are resolved
        assert record["settings"][name] == value
    if name in CHANGES_NO_NUMBER or (name, value) in AS_THE_DEFAULT:
        assert found["validation_loss"] == pytest.approx(plain["validation_loss"], rel=1e-4)
    else:
        changed = {key for key in plain if found.get(key) != plain[key]} - {"run", "out"}
        assert changed & {"validation_loss", "last_train_loss", "num_clips"}
    assert TrainedRun.open(found["out"]).model() is not None


def test_sets_and_a_selection_are_chosen_by_flags(train: Train, sample: Path) -> None:
    sets = [f"--set={name}" for name in FeatureCache.open(sample / "features").feature_sets]
    everything, chosen = train(*sets), train("--selection", str(sample / "selection.json"))
    counts = [sum(found["num_clips"].values()) for found in (everything, chosen)]
    assert counts[0] - counts[1] == 2


def test_settings_of_a_params_file_hold_where_no_flag_is_given(train: Train, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("videos: v\ncache_dir: c\ntrain:\n  warmup: 0.5\n  depth: 7\n")
    found = train("--params", str(params))
    settings = json.loads((found["out"] / "run.json").read_text())["settings"]
    assert (settings["warmup"], settings["depth"]) == (0.5, TINY["depth"])


def test_plan_prints_and_writes_nothing(train: Train) -> None:
    found = train("--plan")
    assert found["parameters"]["total"] > 0
    assert not found["out"].exists()


PAIRED = {
    name: (default, *CASES[name])
    for name, default in {
        "variant": "thinkjepa",
        "guidance": "film",
        "levels": "fixed",
        "use_levels": "all",
        "use_streams": "auto",
        "cross_tokens": "auto",
        "drop_guidance": 0.0,
        "latent_loss": "mse",
        "normalise_targets": False,
        "latent_target": "change",
        "whiten_latents": False,
        "next_step_weight": 0.0,
        "trajectory_units": "metres",
        "anchor": "none",
        "task": "auto",
        "schedule": "constant",
        "precision": "fp32",
        "attention": "frame_causal",
        "clips_per_forward": 4,
    }.items()
}


def covering_runs() -> list[dict[str, object]]:
    """Settings, greedily chosen, among which every two values of two flags stand together in one run."""
    open_pairs = {
        frozenset({(one, first), (other, second)})
        for one, other in combinations(PAIRED, 2)
        for first, second in product(PAIRED[one], PAIRED[other])
        if possible({one: first, other: second})
    }
    runs = []
    while open_pairs:
        run = dict(min(open_pairs, key=sorted_key))
        for name in PAIRED:
            if name not in run:
                allowed = [value for value in PAIRED[name] if possible({**run, name: value})]
                run[name] = max(
                    allowed,
                    key=lambda value: sum(
                        frozenset({(name, value), pair}) in open_pairs for pair in run.items()
                    ),
                )
        open_pairs -= {frozenset(pair) for pair in combinations(run.items(), 2)}
        runs.append(run)
    return runs


def sorted_key(pair: frozenset[tuple[str, object]]) -> str:
    return str(sorted(map(str, pair)))


def possible(settings: Mapping[str, object]) -> bool:
    try:
        TrainSettings(**settings)  # type: ignore[arg-type]
    except StageError:
        return False
    return True


@pytest.mark.soak
def test_every_pair_of_values_runs_together_by_the_installed_command(sample: Path, tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("thinkjepa-train")),
        "--cache-dir",
        str(sample / "features"),
    ]
    for number, settings in enumerate(covering_runs()):
        given = {name: value for name, value in settings.items() if value is not False}
        out = tmp_path / str(number)
        line = [*command, "--out", str(out), *as_flags({**TINY, **given})]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert "next: thinkjepa-eval --run" in done.stdout
        assert TrainedRun.open(out).model() is not None
