"""Progress on the terminal: a bar with rate and time left, failures as they happen.

In a log (a pipe, a file, Slurm, CI, DVC) there is no bar: a line a minute says the same.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from thinkjepa.cache import Failure
from thinkjepa.pipeline.cli.console import counted, human_hours
from thinkjepa.pipeline.report.training import describe_epoch, describe_start
from thinkjepa.stages.train.events import RunStarts, TrainEvent

LINE_EVERY_S = 60.0
"""Seconds between two lines of a task in a log, at least."""

EXPECT_AFTER_S = 10.0
"""Seconds of training after which its whole time is estimated; the end of the first epoch is enough, too."""

RATE_OVER_S = 600.0
"""The last ten minutes make the rate: a batch of clips may take minutes. rich keeps 1,000 advances."""


class RateColumn(ProgressColumn):
    """Units a second over the last ten minutes."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "")
        return Text(rate_text(speed, unit) if speed else f"- {unit}/s", style="progress.data.speed")


def rate_text(speed: float, unit: str) -> str:
    """Units a second, or a minute where that is below one in ten seconds."""
    return f"{speed:.2f} {unit}/s" if speed >= 0.1 else f"{60 * speed:.2f} {unit}/min"


class _Bars:
    """A context manager around rich's progress bars, which in a log are lines."""

    def __init__(
        self, console: Console, *columns: ProgressColumn, line_every_s: float = LINE_EVERY_S
    ) -> None:
        self._console = console
        self._bars = RichProgress(
            *columns,
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=RATE_OVER_S,
        )
        self._line_every_s = line_every_s
        self._last_line_s = time.monotonic()

    def _begin_log(self, text: str) -> None:
        """In a log, print that a task begins; the first line of its progress comes a minute later."""
        if not self._console.is_terminal:
            self._console.print(escape(text), soft_wrap=True)
            self._last_line_s = time.monotonic()

    def _log(self, number: TaskID, *details: str) -> None:
        """In a log, print how far a task is, with more `details`, unless the last line is younger than a
        minute. To be called after every advance."""
        now_s = time.monotonic()
        if self._console.is_terminal or now_s - self._last_line_s < self._line_every_s:
            return
        self._last_line_s = now_s
        task = next(task for task in self._bars.tasks if task.id == number)
        self._console.print(escape(", ".join((progress_line(task), *details))), soft_wrap=True)

    def __enter__(self) -> Self:
        self._bars.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.__exit__(kind, error, trace)


def progress_line(task: Task) -> str:
    """Progress of a task, its rate and the time left, as far as they are known, for a log."""
    unit = task.fields.get("unit", "")
    parts = [f"{task.description}: {task.completed:,.0f} of {task.total or 0:,.0f} {unit}"]
    if speed := task.finished_speed or task.speed:
        parts.append(rate_text(speed, unit))
    if task.time_remaining:
        parts.append(f"{human_hours(task.time_remaining / 3600)} left")
    return ", ".join(parts)


class TerminalProgress(_Bars):
    """Shows what stages report (`thinkjepa.stages.progress.Progress`); a context manager."""

    def __init__(self, console: Console, *, line_every_s: float = LINE_EVERY_S) -> None:
        super().__init__(
            console,
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            line_every_s=line_every_s,
        )
        self._task: TaskID | None = None

    def begin(self, task: str, *, total: int, unit: str) -> None:
        self._begin_log(f"{task}: {counted(total, unit.removesuffix('s'))}")
        self._task = self._bars.add_task(task, total=total, unit=unit)

    def advance(self, count: int) -> None:
        if self._task is not None:
            self._bars.advance(self._task, count)
            self._log(self._task)

    def failed(self, failure: Failure) -> None:
        name = f"{failure.video} ({failure.clip_id})" if failure.clip_id else failure.video
        text = escape(f"{name!r} at {failure.stage}: {failure.reason}")
        self._console.print(f"[red]failed[/red] {text}", soft_wrap=True)

    def note(self, text: str) -> None:
        self._console.print(escape(text), soft_wrap=True)


class TrainingBar(_Bars):
    """Shows a training: its head, steps done, time left, the epoch's mean loss so far; a context manager."""

    def __init__(self, console: Console, *, line_every_s: float = LINE_EVERY_S) -> None:
        super().__init__(
            console,
            TextColumn("{task.description:<14}"),
            BarColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.5f}"),
            line_every_s=line_every_s,
        )
        self._start: RunStarts | None = None
        self._task: TaskID | None = None
        self._begun_s = self._first_step_s = self._losses = 0.0
        self._steps = self._steps_of_epoch = 0
        self._expected = False

    def report(self, event: TrainEvent) -> None:
        """Print an event of the training (`thinkjepa.stages.train.events`)."""
        if isinstance(event, str):
            self._print(event)
        elif isinstance(event, RunStarts):
            self._start, self._begun_s = event, time.monotonic()
            self._print(describe_start(event))
            for warning in filter(None, (event.labels_warning, event.split_warning)):
                self._print(warning, style="yellow")
        else:
            self._print(describe_epoch(event))
            self._losses, self._steps_of_epoch = 0.0, 0

    def __call__(self, *, epoch: int, step: int, total_steps: int, loss: float) -> None:
        """Show that one optimizer step is done. Epochs and steps count from 1, steps anew in each epoch."""
        epochs = self._start.epochs if self._start else epoch
        done, total = (epoch - 1) * total_steps + step, epochs * total_steps
        if self._task is None:
            self._first_step_s = time.monotonic()
            self._task = self._bars.add_task("", total=total, unit="steps", completed=done, loss=loss)
        self._losses, self._steps_of_epoch = self._losses + loss, self._steps_of_epoch + 1
        mean = self._losses / self._steps_of_epoch
        self._bars.update(self._task, completed=done, loss=mean, description=f"epoch {epoch}/{epochs}")
        self._log(self._task, f"mean loss {mean:.5f}")
        self._steps += 1
        self._expect(steps_left=total - done, ends_epoch=step == total_steps)

    def _expect(self, *, steps_left: int, ends_epoch: bool) -> None:
        """Say once how long it will take, when a few steps are measured, or a slow first one. A validation
        step is a forward only, a third of a training step."""
        if self._expected or self._start is None or not steps_left:
            return
        begun_s, measured = (self._first_step_s, self._steps - 1) if self._steps > 1 else (self._begun_s, 1)
        elapsed_s = time.monotonic() - begun_s
        if elapsed_s < EXPECT_AFTER_S and not (ends_epoch and self._steps > 1):
            return
        sizes = self._start.sizes
        with_validation = 1 + sizes["validation"].clips / sizes["train"].clips / 3
        step_s = elapsed_s / measured
        expected = human_hours(step_s * steps_left * with_validation / 3600)
        self._print(f"time to expect   about {expected} more, {step_s:.3g} s a step")
        self._expected = True

    def _print(self, text: str, *, style: str | None = None) -> None:
        self._console.print(escape(text), soft_wrap=True, style=style)
