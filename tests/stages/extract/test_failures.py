"""Runs with failures: they go on, end early where told to, and try again when asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from thinkjepa.cache import ClipRow, Failure, FeatureCache, Problem, WriteSession, drop_clips
from thinkjepa.pipeline.report.cache import cache_info, describe_info
from thinkjepa.stages.data.decoding.client import DecodeError
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.models.pair import FrozenModel
from thinkjepa.stages.extract.remembered import remembered_settings
from thinkjepa.stages.extract.report import ExtractReport
from thinkjepa.stages.extract.run import extract
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings
from thinkjepa.stages.extract.work.frames import ClipDecoding
from thinkjepa.stages.progress import NoProgress
from thinkjepa.stages.train.data.features import choose_features
from thinkjepa.stages.train.settings import TrainSettings

CLIPS = ClipSettings(thinker_frames=4, observed_frames=4, future_frames=4, dense_fps=10, stride_s=0.5)
Run = Callable[..., ExtractReport]
TreeDigest = Callable[[Path], dict[str, str]]
BROKEN = ("b.mp4", "c.mp4", "e.mp4")


class Counting(NoProgress):
    """Counts planned videos, extracted clips and shown failures."""

    def __init__(self) -> None:
        self.task, self.advanced, self.shown = "", {"planning": 0, "extracting": 0}, list[Failure]()

    def begin(self, task: str, *, total: int, unit: str) -> None:
        self.task = task

    def advance(self, count: int) -> None:
        self.advanced[self.task] += count

    def failed(self, failure: Failure) -> None:
        self.shown.append(failure)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Seven videos with a clip or two each; their decoded content differs by their lengths."""
    folder = tmp_path_factory.mktemp("videos")
    for number, name in enumerate("abcdefg"):
        make_video(folder / f"{name}.mp4", num_frames=50 + number)
    return folder


@pytest.fixture
def run(videos: Path, tmp_path: Path, tiny_models: Path) -> Run:
    models = ModelSettings(
        thinker=str(tiny_models / "thinker"), encoder=str(tiny_models / "encoder"), dtype="float32"
    )
    model_names = {field.name for field in fields(ModelSettings)}

    def run(folder: Path = videos, progress: Any = None, **changes: Any) -> ExtractReport:
        of_models = {name: changes.pop(name) for name in model_names & changes.keys()}
        execution = changes
        return extract(
            folder,
            tmp_path / "cache",
            clips=CLIPS,
            models=replace(models, **of_models),
            execution=ExecutionSettings(**execution),
            progress=progress or NoProgress(),
        )

    return run


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of videos whose clips cannot be decoded for the encoder. A test changes them."""
    names = set(BROKEN)
    real = ClipDecoding.windows

    def windows(self: ClipDecoding, clip: ClipRow, model: FrozenModel) -> Any:
        if clip.video in names and model.kind == "encoder":
            raise DecodeError("no frames today")
        return real(self, clip, model)

    monkeypatch.setattr(ClipDecoding, "windows", windows)
    return names


def test_failed_clips_are_left_out_by_later_runs_until_they_are_to_be_tried_again(
    run: Run, broken: set[str], tree_digest: TreeDigest, tmp_path: Path
) -> None:
    first = run()
    assert {failure.video for failure in first.failures} == set(BROKEN)
    assert (first.too_many_failures, first.stopped_early, first.failed_before) == (True, False, 0)
    assert first.extracted == first.clips - first.failed_clips > 0
    before = tree_digest(tmp_path / "cache")
    broken.clear()
    second = run()
    assert (second.extracted, second.failed_before) == (0, first.failed_clips)
    assert set(second.failures) == set(first.failures)
    assert tree_digest(tmp_path / "cache") == before
    third = run(retry_failed=True)
    assert (third.extracted, third.failed_clips, third.failures) == (first.failed_clips, 0, [])
    assert FeatureCache.open(tmp_path / "cache").failures == []
    assert run().failed_before == 0


def test_clips_that_verify_dropped_are_made_anew_unasked(run: Run, tmp_path: Path) -> None:
    done = run()
    with WriteSession(tmp_path / "cache"):
        drop_clips(tmp_path / "cache", [Problem(done.encoder_set, done.clip_ids[0], "damaged")])
    assert (run().extracted, run().already_there) == (1, done.clips)


def test_a_run_over_the_failure_limit_ends_early_and_continues_when_more_is_accepted(
    run: Run, broken: set[str], tree_digest: TreeDigest, tmp_path: Path
) -> None:
    progress = Counting()
    stopped = run(progress=progress, max_failures="1", shard_mb=1)
    assert (stopped.stopped_early, stopped.too_many_failures, stopped.failed_videos) == (True, True, 2)
    assert progress.advanced["extracting"] < stopped.clips
    assert {failure.video for failure in progress.shown} == {"b.mp4", "c.mp4"}
    assert stopped.failed_clips == len({failure.clip_id for failure in stopped.failures})
    assert stopped.remaining_clips == stopped.clips - stopped.failed_clips - stopped.extracted > 0
    whole = run(max_failures="50%")
    assert (whole.stopped_early, whole.too_many_failures, whole.failed_videos) == (False, False, 3)
    assert whole.remaining_clips == 0
    assert whole.extracted + whole.already_there == whole.clips - whole.failed_clips
    again = run(max_failures="2")  # those of earlier runs count as well
    assert (again.stopped_early, again.extracted, again.failed_videos) == (True, 0, 3)


def test_a_folder_of_rubbish_ends_while_it_is_planned(run: Run, tmp_path: Path, videos: Path) -> None:
    folder = tmp_path / "rubbish"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02d}.mp4").write_text(f"text {number}")
    shutil.copy(videos / "a.mp4", folder / "z.mp4")
    progress = Counting()
    report = run(folder, progress, max_failures="10%")
    assert (report.stopped_early, report.videos, report.extracted) == (True, 31, 0)
    assert progress.advanced == {"planning": 5, "extracting": 0}


def test_a_worker_cluster_ends_early_too(run: Run, tmp_path: Path, videos: Path) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    lost = [folder / f"{name}.mp4" for name in "bce"]
    progress = Counting()

    def begin(task: str, *, total: int, unit: str) -> None:
        Counting.begin(progress, task, total=total, unit=unit)
        if task == "extracting":  # planned, and gone before anybody comes to them
            for path in lost:
                path.unlink()

    progress.begin = begin  # type: ignore[method-assign]
    report = run(folder, progress, workers=2, max_failures="0", shard_mb=1)
    assert (report.stopped_early, report.too_many_failures) == (True, True)
    assert report.failed_videos >= 1


def test_too_little_space_is_told_before_anything_is_computed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(free=1000)
    monkeypatch.setattr("thinkjepa.stages.extract.figures.shutil.disk_usage", lambda path: free)
    with pytest.raises(
        StageError, match=r"clips without features take about .* GB, and '.*cache' has 1e-06 GB"
    ):
        run()
    done = run(ignore_space=True)
    assert done.extracted == done.clips
    assert run().already_there == done.clips, "nothing is missing, so nothing is needed"


def test_what_the_thinker_will_refuse_is_told_before_the_models_are_loaded(
    run: Run, tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    make_video(tmp_path / "wide" / "wide.mp4", num_frames=40, size=(3232, 16))
    order: list[str] = []

    class Noting(NoProgress):
        def begin(self, task: str, *, total: int, unit: str) -> None:
            order.append(task)

        def note(self, text: str) -> None:
            order.append(text)

    report = run(tmp_path / "wide", Noting())
    planning, *of_the_plan, warning, loading, extracting = order[order.index("planning") :]
    assert (planning, extracting) == ("planning", "extracting")
    assert warning.startswith(f"warning: {report.clips} clips of 3232x16 px will fail")
    assert "aspect ratio" in warning
    assert loading.startswith("loading ")
    assert loading.count("thinker (") == loading.count("encoder (") == 1
    assert [failure.stage for failure in report.failures] == ["thinker"] * report.clips
    order.clear()
    assert run(tmp_path / "wide", Noting()).failed_before == report.clips
    assert order == ["planning", *of_the_plan]  # nothing is left to do, so nothing is loaded
    info = cache_info(tmp_path / "cache")
    failed = {
        item["kind"]: [failure["stage"] for failure in item["failures"]] for item in info["feature_sets"]
    }
    assert failed == {"thinker": ["thinker"] * report.clips, "encoder": []}
    text = describe_info(info)
    assert f"{report.clips} clips failed in this set:" in text
    assert text.count("'wide.mp4'") == report.clips  # each once, at the set that lacks it
    assert " failures at the settings" not in text


def test_a_failed_extraction_is_no_default_of_what_follows(
    run: Run, broken: set[str], tiny_models: Path, tmp_path: Path
) -> None:
    """Neither settings nor sets without a clip are taken where nothing is named."""
    cache = tmp_path / "cache"
    unloadable = shutil.copytree(tiny_models / "thinker", tmp_path / "unloadable")
    config = json.loads((unloadable / "config.json").read_text())
    config["text_config"]["intermediate_size"] += 8
    (unloadable / "config.json").write_text(json.dumps(config))
    with pytest.raises(StageError, match="cannot be loaded"):
        run(thinker=str(unloadable), prompt="Which hand?")
    assert remembered_settings(cache) == {}
    broken |= {f"{name}.mp4" for name in "abcdefg"}
    assert run().extracted == 0
    assert remembered_settings(cache) == {}
    broken.clear()
    done = run(retry_failed=True)
    assert done.extracted == done.clips
    assert remembered_settings(cache)["models"]["prompt"] == "Describe this video."
    opened = FeatureCache.open(cache)
    assert len(opened.feature_sets) > 2
    assert opened.choose_set("thinker").name == done.thinker_set
    assert choose_features(opened, TrainSettings()).thinker is opened.feature_sets[done.thinker_set]
    assert ": no features yet, so no default" in describe_info(cache_info(cache))
    (cache / "extraction.json").unlink()
    assert remembered_settings(cache)["models"]["prompt"] == "Describe this video."
