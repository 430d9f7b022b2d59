"""Progress in a log, where there is no terminal."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from thinkjepa.cache import Failure
from thinkjepa.pipeline.cli import progress as reporting
from thinkjepa.pipeline.cli.progress import TerminalProgress, TrainingBar, rate_text
from thinkjepa.pipeline.report.extraction import describe_report
from thinkjepa.stages.data.partition import SplitName, SplitSize
from thinkjepa.stages.data.short_videos import ShortVideo
from thinkjepa.stages.extract.report import ExtractReport
from thinkjepa.stages.train.events import EpochEnds, RunStarts
from thinkjepa.stages.train.fit.state import EpochLosses


def in_a_log() -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, force_terminal=False, width=80), written


def test_a_log_gets_a_line_an_interval_with_rate_and_time_left() -> None:
    console, written = in_a_log()
    with TerminalProgress(console, line_every_s=0.2) as progress:
        progress.begin("extracting", total=1000, unit="clips")
        for _ in range(10):
            time.sleep(0.05)
            progress.advance(2)
    first, *later = written.getvalue().splitlines()
    assert first == "extracting: 1,000 clips"
    assert 1 <= len(later) <= 3  # ten advances in half a second, and a line every fifth of it
    done = [int(line.removeprefix("extracting: ").split(" of 1,000 clips, ")[0]) for line in later]
    assert done == sorted(done)
    assert 2 <= done[0] <= done[-1] <= 20
    assert all(line.endswith(" left") and " clips/s, " in line for line in later)


def test_a_log_is_silent_within_the_interval() -> None:
    console, written = in_a_log()
    with TerminalProgress(console) as progress:
        progress.begin("planning", total=3, unit="videos")
        progress.advance(3)
    assert written.getvalue() == "planning: 3 videos\n"


def test_a_training_log_tells_the_loss_between_epochs() -> None:
    console, written = in_a_log()
    with TrainingBar(console, line_every_s=0.0) as bar:
        bar(epoch=1, step=1, total_steps=4, loss=0.5)
        bar(epoch=1, step=2, total_steps=4, loss=0.25)
    first, second = written.getvalue().splitlines()
    assert first == "epoch 1/1: 1 of 4 steps, mean loss 0.50000"
    assert second.startswith("epoch 1/1: 2 of 4 steps, ")
    assert second.endswith(", mean loss 0.37500")


SIZES: dict[SplitName, SplitSize] = {
    "train": SplitSize(groups=2, videos=6, clips=12, share=0.5),
    "validation": SplitSize(groups=1, videos=3, clips=6, share=0.25),
    "test": SplitSize(groups=1, videos=3, clips=6, share=0.25),
}
START = RunStarts(
    variant="jepa",
    num_joints=12,
    has_labels=True,
    unknown_joints=(),
    device="cpu",
    processes=1,
    threads=2,
    parameters=21_330_000,
    memory_bytes=1_140_000_000,
    sizes=SIZES,
    grouping="folder",
    labels_warning="",
    split_warning="warning: [far] off",
    without_tokens={},
    guidance_source="",
    epochs=10,
    select_by="joints",
    epochs_done=0,
    steps_done=0,
    steps_per_epoch=2,
)


def test_a_training_begins_with_what_it_is_about() -> None:
    console, written = in_a_log()
    with TrainingBar(console) as bar:
        bar.report(replace(START, epochs_done=3, steps_done=1))
    assert written.getvalue().splitlines() == [
        "model            jepa, 21.33 M parameters, predicts latents and 12 joints",
        "device           cpu, 2 threads, about 1.1 GB",
        "split            clips   share  videos  groups (by folder)",
        "  train             12    50 %       6       2",
        "  validation         6    25 %       3       1",
        "  test               6    25 %       3       1",
        "training         10 epochs of 2 steps, the best by the validation clips' distance of joints is kept",
        "continues        after epoch 3, step 1 of the next",
        "warning: [far] off",
    ]


def test_that_hands_need_labels_is_said_where_there_are_none() -> None:
    console, written = in_a_log()
    with TrainingBar(console) as bar:
        bar.report(replace(START, num_joints=0, has_labels=False, labels_warning="warning: [metres]?"))
        bar.report(replace(START, unknown_joints=("leftHand",)))
    assert "\nwarning: [metres]?\nwarning: [far] off\n" in written.getvalue()
    assert "without leftHand: confidence 0 in all training clips" in written.getvalue()
    hands = next(line for line in written.getvalue().splitlines() if line.startswith("hands "))
    report = ExtractReport("features", "thinker-1", "encoder-1", videos=3, clips=4)
    extracted = describe_report(report)
    for text in (hands, extracted):
        assert "docs/labels.md" in text
        assert "thinkjepa-data import" in text
    labelled = describe_report(replace(report, labelled_videos=2, broken_labels=1))
    assert "hand labels: 2 videos, 1 label file broken" in labelled
    assert "docs/labels.md" not in labelled


def test_the_summary_of_an_extraction_adds_up() -> None:
    broken = Failure("b.mp4", "open", "no video")
    lost = [Failure("c.mp4", "thinker", "too long", clip_id=f"c@{split}") for split in (4, 8)]
    report = ExtractReport("features", "thinker-1", "encoder-1", videos=3, clips=4, extracted=2)
    report = replace(report, failed_clips=2, failed_videos=2, failures=[broken, *lost])
    text = describe_report(report)
    assert text.startswith("3 videos (2 failed), 4 clips, ")
    assert ": 2 extracted, 0 already there, 2 failed (" in text
    assert "2 videos failed (1 at open, 1 at thinker): " in text
    assert "allowed" not in text
    assert text.endswith("mend or remove what failed and run again, or accept it with --max-failures")
    assert "more than the 1 allowed: " in describe_report(replace(report, allowed_failed_videos=1))
    one = replace(report, videos=1, clips=1, extracted=0, failed_clips=0, failed_videos=1, failures=[broken])
    stopped = replace(one, allowed_failed_videos=0, stopped_early=True, remaining_clips=1)
    text = describe_report(stopped)
    assert text.startswith("1 video (1 failed), 1 clip, ")
    assert "0 failed, 1 left for the next run (" in text
    assert "1 video failed (1 at open): " in text
    assert text.endswith("what was extracted is kept, the same command with a higher number continues")
    short = [ShortVideo("d.mp4", "", duration_s=1.0, needed="6.30 s")]
    text = describe_report(replace(one, videos=2, too_short=short, allowed_failed_videos=1))
    assert text.startswith("2 videos (1 failed, 1 too short), 1 clip, ")
    assert "1 video is too short for a clip, which needs 6.30 s: 'd.mp4' (1.00 s)" in text


def test_a_rate_is_told_only_of_what_was_extracted() -> None:
    report = ExtractReport(
        "features", "thinker-1", "encoder-1", videos=3, clips=4, already_there=4, seconds=0.9
    )
    assert "4 already there, 0 failed (0.9 s)" in describe_report(report)
    assert "0 failed (0.9 s, 2.22 clips/s)" in describe_report(replace(report, extracted=2))


def test_an_epoch_is_a_line_of_mean_losses() -> None:
    console, written = in_a_log()
    with TrainingBar(console) as bar:
        bar.report(EpochEnds(EpochLosses(7, 0.5, 0.25, 0.25, 0.0613), epochs=10, best=True))
        bar.report(EpochEnds(EpochLosses(8, 0.5, 0.75, 0.75), epochs=10, best=False))
        bar.report(EpochEnds(EpochLosses(9, 0.5, 0.75, 0.75, 0.05, 0.1234, 2e-4), epochs=10, best=False))
    assert written.getvalue().splitlines() == [
        "epoch  7/10: loss 0.50000 training, 0.25000 validation (best so far), joints 61.3 mm",
        "epoch  8/10: loss 0.50000 training, 0.75000 validation",
        "epoch  9/10: loss 0.50000 training, 0.75000 validation, joints 50.0 mm, "
        "gradients 0.12 latents 0.0002 joints",
    ]


def test_the_mean_loss_is_that_of_the_epoch() -> None:
    console, written = in_a_log()
    with TrainingBar(console, line_every_s=0.0) as bar:
        bar.report(replace(START, split_warning=""))
        for epoch, losses in ((1, (4.0, 2.0)), (2, (1.0, 0.5))):
            for step, loss in enumerate(losses, start=1):
                bar(epoch=epoch, step=step, total_steps=2, loss=loss)
            bar.report(EpochEnds(EpochLosses(epoch, 1.0, 1.0, 1.0), epochs=10, best=False))
    lines = written.getvalue().splitlines()
    means = [line.rsplit("mean loss ", 1)[1] for line in lines if "mean loss" in line]
    assert means == ["4.00000", "3.00000", "1.00000", "0.75000"]
    assert [line.split(" steps")[0] for line in lines if "mean loss" in line][-1] == "epoch 2/10: 4 of 20"


def test_the_time_to_expect_is_said_once_and_counts_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 s a step, 18 steps to come, and validations of half as many clips, each a third of a step."""
    console, written = in_a_log()
    now = iter([0.0, 0.0, 0.0, 0.0, 0.0] + [2.0] * 30)
    monkeypatch.setattr(reporting, "time", SimpleNamespace(monotonic=lambda: next(now)))
    with TrainingBar(console) as bar:
        bar.report(START)
        for step in (1, 2):
            bar(epoch=1, step=step, total_steps=2, loss=1.0)
        bar(epoch=2, step=1, total_steps=2, loss=1.0)
    expected = [line for line in written.getvalue().splitlines() if line.startswith("time to expect")]
    assert expected == ["time to expect   about 42 s more, 2 s a step"]


def test_a_slow_first_step_is_enough_to_expect_from(monkeypatch: pytest.MonkeyPatch) -> None:
    console, written = in_a_log()
    now = iter([0.0, 0.0] + [30.0] * 30)
    monkeypatch.setattr(reporting, "time", SimpleNamespace(monotonic=lambda: next(now)))
    with TrainingBar(console) as bar:
        bar.report(replace(START, steps_per_epoch=1))
        bar(epoch=1, step=1, total_steps=1, loss=1.0)
    (expected,) = [line for line in written.getvalue().splitlines() if line.startswith("time to expect")]
    assert expected == "time to expect   about 5 min more, 30 s a step"


def test_nothing_is_expected_of_a_run_that_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    console, written = in_a_log()
    now = iter([0.0, 0.0] + [30.0] * 30)
    monkeypatch.setattr(reporting, "time", SimpleNamespace(monotonic=lambda: next(now)))
    with TrainingBar(console) as bar:
        bar.report(replace(START, epochs=1, steps_per_epoch=1))
        bar(epoch=1, step=1, total_steps=1, loss=1.0)
    assert "time to expect" not in written.getvalue()


def test_slow_work_is_told_by_the_minute() -> None:
    assert rate_text(2.5, "clips") == "2.50 clips/s"
    assert rate_text(1 / 120, "clips") == "0.50 clips/min"
