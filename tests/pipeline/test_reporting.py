"""Progress in a log, where there is no terminal."""

from __future__ import annotations

import io
import time

from rich.console import Console

from thinkjepa.pipeline.reporting import TerminalProgress, TrainingBar, rate_text


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
    assert first == "extracting: 1000 clips"
    assert 1 <= len(later) <= 3  # ten advances in half a second, and a line every fifth of it
    done = [int(line.removeprefix("extracting: ").split(" of 1000 clips, ")[0]) for line in later]
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
    with TrainingBar(console, epochs=1) as bar:
        bar._line_every_s = 0.0
        bar(epoch=1, step=1, total_steps=4, loss=0.5)
        bar(epoch=1, step=2, total_steps=4, loss=0.25)
    first, second = written.getvalue().splitlines()
    assert first == "epoch 1/1: 1 of 4 steps, loss 0.50000"
    assert second.startswith("epoch 1/1: 2 of 4 steps, ")
    assert second.endswith(", loss 0.25000")


def test_slow_work_is_told_by_the_minute() -> None:
    assert rate_text(2.5, "clips") == "2.50 clips/s"
    assert rate_text(1 / 120, "clips") == "0.50 clips/min"
