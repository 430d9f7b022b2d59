"""The check and the import of hand labels as text."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from thinkjepa.pipeline.cli.console import counted
from thinkjepa.stages.data.labels.check import FolderCheck, VideoCheck
from thinkjepa.stages.data.labels.findings import BINS
from thinkjepa.stages.data.labels.storing import LabelReport

WORST = 10
"""Videos in the table; --json has all. Errors are listed without a limit."""

BAR = 40


def describe_check(check: FolderCheck) -> str:
    """Totals, errors, warnings by kind, and the confidences as bars."""
    lines = [
        f"{check.folder}: {counted(len(check.videos), 'video')}, {len(check.usable)} with usable labels, "
        f"{counted(check.num_errors, 'error')}, {counted(check.num_warnings, 'warning')}",
        *([hands] if (hands := _hands(check)) else []),
        *_errors(check),
        *_warnings(check),
    ]
    if check.usable:
        lines += ["", *_table(check), "", *_histogram(check.confidence_histogram)]
    return "\n".join(lines)


def describe_import(report: LabelReport, cache_dir: Path) -> str:
    """One line: videos with labels, those stored now, and those that could not be read."""
    gone = f" ({report.withdrawn_videos} lost theirs now)" if report.withdrawn_videos else ""
    broken = f", {len(report.failures)} could not be read (see above)" if report.failures else ""
    return (
        f"{counted(report.labelled_videos, 'video')} with labels in {cache_dir}: {report.added} stored now, "
        f"{report.labelled_videos - report.added} already there; "
        f"{counted(report.unlabelled_videos, 'video')} without a label file{gone}{broken}"
    )


def _errors(check: FolderCheck) -> list[str]:
    found = [(item.video, finding) for item in check.videos for finding in item.findings]
    lines = [f"  {video!r}: {finding.message}" for video, finding in found if finding.severity == "error"]
    return ["", "errors (trained without these labels):", *lines] if lines else []


def _warnings(check: FolderCheck) -> list[str]:
    """A line a kind, the most frequent first: equal warnings are counted, the first one is shown."""
    found = [(item.video, finding) for item in check.videos for finding in item.findings]
    named: dict[str, list[str]] = defaultdict(list)
    for video, finding in found:
        if finding.severity == "warning":
            named[finding.kind].append(f"{video!r}: {finding.message}")
    lines = [f"  {finding.kind}: {finding.message}" for finding in check.findings]
    for kind, texts in sorted(named.items(), key=lambda item: -len(item[1])):
        count = "" if len(texts) == 1 else f"{len(texts)} videos, the first "
        lines.append(f"  {kind}: {count}{texts[0]}")
    more = " (--json lists them all)" if any(len(texts) > 1 for texts in named.values()) else ""
    return ["", f"warnings{more}:", *lines] if lines else []


def _hands(check: FolderCheck) -> str:
    """`right in 96 of 96 videos, left never`, or nothing where no wrist is named."""
    counts = check.videos_with_wrist
    if not any(counts.values()):
        return ""
    total = len(check.usable)
    return "hands known: " + ", ".join(
        f"{wrist.removesuffix('Hand')} {f'in {count} of {total} videos' if count else 'never'}"
        for wrist, count in counts.items()
    )


def _table(check: FolderCheck) -> list[str]:
    """Counts of the worst few videos: most jumps and held samples first."""
    header = f"{'video':<32}{'frames':>8}{'labels':>8}{'joints':>8}{'held':>8}{'jumps':>7}{'m/s':>8}"
    worst = sorted(check.usable, key=_badness, reverse=True)[:WORST]
    lines = [header, *(_row(item) for item in worst)]
    rest = len(check.usable) - len(worst)
    return [*lines, f"... and {counted(rest, 'video')} with less of it"] if rest else lines


def _badness(item: VideoCheck) -> tuple[int, float]:
    assert item.figures is not None
    return item.figures.jumps, item.figures.held_share


def _row(item: VideoCheck) -> str:
    figures = item.figures
    assert figures is not None
    name = item.video if len(item.video) <= 30 else f"...{item.video[-27:]}"
    return (
        f"{_escaped(name):<32}{item.video_frames:>8}{figures.frames:>8}{len(figures.known_joints):>8}"
        f"{figures.held_share:>8.1%}{figures.jumps:>7}{figures.fastest_m_s:>8.2f}"
    )


def _escaped(name: str) -> str:
    """No control characters: a file's name must not steer the terminal."""
    return repr(name)[1:-1]


def _histogram(counts: list[int]) -> list[str]:
    total = max(sum(counts), 1)
    lines = ["confidence of joints, share of samples:"]
    for index, count in enumerate(counts):
        bar = "#" * round(BAR * count / total)
        lines.append(
            f"  {index / BINS:.1f} to {(index + 1) / BINS:.1f}  {count / total:>6.1%}  {bar}".rstrip()
        )
    return lines
