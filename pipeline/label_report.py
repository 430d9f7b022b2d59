"""What was found in hand labels, for people."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from thinkjepa.stages.data.labels.findings import BINS
from thinkjepa.stages.data.labels.folder_check import FolderCheck, VideoCheck
from thinkjepa.stages.data.labels.storing import LabelReport

MAX_NAMED = 5
"""Videos listed for one kind of warning; --json has all. Errors are listed without a limit."""

BAR = 40


def describe_check(check: FolderCheck) -> str:
    """Totals, errors, warnings by kind, and the confidences as bars."""
    lines = [
        f"{check.folder}: {len(check.videos)} videos, {len(check.usable)} with usable labels, "
        f"{check.num_errors} errors, {check.num_warnings} warnings",
        *_errors(check),
        *_warnings(check),
    ]
    if check.usable:
        lines += ["", *_table(check), "", *_histogram(check.confidence_histogram)]
    return "\n".join(lines)


def describe_import(report: LabelReport, cache_dir: Path) -> str:
    """One line."""
    broken = f", {len(report.failures)} could not be read (see above)" if report.failures else ""
    return (
        f"{report.labelled_videos} videos with labels in {cache_dir}: {report.added} stored now, "
        f"{report.labelled_videos - report.added} already there; {report.unlabelled_videos} videos have no "
        f"label file{broken}"
    )


def _errors(check: FolderCheck) -> list[str]:
    found = [(item.video, finding) for item in check.videos for finding in item.findings]
    lines = [f"  {video!r}: {finding.message}" for video, finding in found if finding.severity == "error"]
    return ["", "errors (trained without these labels):", *lines] if lines else []


def _warnings(check: FolderCheck) -> list[str]:
    """Grouped by kind, the most frequent first."""
    named: dict[str, list[str]] = defaultdict(list)
    for item in check.videos:
        for finding in item.findings:
            if finding.severity == "warning":
                named[finding.kind].append(f"    {item.video!r}: {finding.message}")
    lines = ["", "warnings:"] if named else []
    for kind, count in Counter({kind: len(texts) for kind, texts in named.items()}).most_common():
        lines += [f"  {kind}: {count} {'video' if count == 1 else 'videos'}", *named[kind][:MAX_NAMED]]
        if count > MAX_NAMED:
            lines.append(f"    and {count - MAX_NAMED} more (--json lists them)")
    return lines


def _table(check: FolderCheck) -> list[str]:
    """Counts of the worst few videos: most jumps and held samples first."""
    header = f"{'video':<32}{'frames':>8}{'labels':>8}{'joints':>8}{'held':>8}{'jumps':>7}{'m/s':>8}"
    worst = sorted(check.usable, key=_badness, reverse=True)[: 2 * MAX_NAMED]
    lines = [header, *(_row(item) for item in worst)]
    rest = len(check.usable) - len(worst)
    return [*lines, f"... and {rest} videos with less of it"] if rest else lines


def _badness(item: VideoCheck) -> tuple[int, float]:
    assert item.figures is not None
    return item.figures.jumps, item.figures.held_share


def _row(item: VideoCheck) -> str:
    figures = item.figures
    assert figures is not None
    name = item.video if len(item.video) <= 30 else f"...{item.video[-27:]}"
    return (
        f"{_escaped(name):<32}{item.video_frames:>8}{figures.frames:>8}{figures.joints:>8}"
        f"{figures.held_share:>8.1%}{figures.jumps:>7}{figures.fastest_m_s:>8.2f}"
    )


def _escaped(name: str) -> str:
    """No control characters: a file's name must not steer the terminal."""
    return repr(name)[1:-1]


def _histogram(counts: list[int]) -> list[str]:
    total = max(sum(counts), 1)
    lines = ["confidence of joints, share of samples:"]
    for place, count in enumerate(counts):
        bar = "#" * round(BAR * count / total)
        lines.append(
            f"  {place / BINS:.1f} to {(place + 1) / BINS:.1f}  {count / total:>6.1%}  {bar}".rstrip()
        )
    return lines
