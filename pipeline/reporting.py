"""Progress on the terminal: a bar with rate and time left, failures as they happen."""

from __future__ import annotations

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


class RateColumn(ProgressColumn):
    """Units a second since the task began."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "")
        return Text(f"{speed:.2f} {unit}/s" if speed else f"- {unit}/s", style="progress.data.speed")


class _Bars:
    """A context manager around rich's progress bars."""

    _bars: RichProgress

    def __enter__(self) -> Self:
        self._bars.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.__exit__(kind, error, trace)


class TerminalProgress(_Bars):
    """Shows what stages report (`thinkjepa.stages.progress.Progress`); a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = RichProgress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def begin(self, task: str, *, total: int, unit: str) -> None:
        if not self._console.is_terminal:
            self._console.print(f"{task}: {total} {unit}")
        self._task = self._bars.add_task(task, total=total, unit=unit)

    def advance(self, count: int) -> None:
        if self._task is not None:
            self._bars.advance(self._task, count)

    def failed(self, failure: Failure) -> None:
        name = f"{failure.video} ({failure.clip_id})" if failure.clip_id else failure.video
        text = escape(f"{name!r} at {failure.stage}: {failure.reason}")
        self._console.print(f"[red]failed[/red] {text}", soft_wrap=True)

    def note(self, text: str) -> None:
        self._console.print(escape(text), soft_wrap=True)


class TrainingBar(_Bars):
    """Shows a training run: steps done, steps a second, time left, the last loss; a context manager."""

    def __init__(self, console: Console, *, epochs: int) -> None:
        self._console = console
        self._epochs = epochs
        self._bars = RichProgress(
            TextColumn("{task.description:<14}"),
            BarColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.5f}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __call__(self, *, epoch: int, step: int, total_steps: int, loss: float) -> None:
        """One optimiser step is done; epochs and steps count from 1."""
        if self._task is None:
            self._task = self._bars.add_task("", total=self._epochs * total_steps, unit="steps", loss=loss)
        done = (epoch - 1) * total_steps + step
        self._bars.update(self._task, completed=done, loss=loss, description=f"epoch {epoch}/{self._epochs}")
        if step == total_steps and not self._console.is_terminal:
            self._console.print(f"epoch {epoch}/{self._epochs}: loss {loss:.5f}")
