"""The summary of an extraction, for people."""

from __future__ import annotations

from collections import Counter

from thinkjepa.stages.data.joints import HANDS_NEED_LABELS
from thinkjepa.stages.data.repeated_frames import describe_repeats
from thinkjepa.stages.extract.extraction import ExtractReport


def describe_report(
    report: ExtractReport, *, accept_by: str = "--max-failures", retry_by: str = "--retry-failed"
) -> str:
    """Some lines: what was done, what failed and why, what to do next.

    `accept_by` and `retry_by` are how the reader accepts failures, and has failed clips tried again.
    """
    rate = report.extracted / report.seconds if report.seconds else 0.0
    rates = "cut by index" if report.dense_fps is None else f"dense windows at {report.dense_fps:g} fps"
    lines = [
        f"{report.videos} videos, {report.clips} clips, {rates}: {report.extracted} extracted, "
        f"{report.already_there} already there, {report.failed_clips} failed "
        f"({report.seconds:.1f} s, {rate:.2f} clips/s)",
        f"thinker set {report.thinker_set}, encoder set {report.encoder_set} in {report.cache_dir}",
    ]
    if warning := describe_repeats(report.repeated_frames, fps=report.dense_fps):
        lines.append(f"warning: {warning}")
    if report.repeats:
        lines.append(f"{len(report.repeats)} files repeat the content of another one and were taken once")
    lines.append(_labels(report))
    if report.failed_videos:
        stages = Counter(failure.stage for failure in report.failures if failure.stage != "labels")
        reasons = ", ".join(f"{number} at {stage}" for stage, number in sorted(stages.items()))
        lines.append(f"{report.failed_videos} videos failed ({reasons}): thinkjepa-cache info lists them")
    if report.failed_before:
        lines.append(f"{report.failed_before} clips failed in an earlier run: {retry_by} tries them again")
    if report.stopped_early:
        lines.append(
            f"stopped early: more than the {report.allowed_failed_videos} that {accept_by} accepts; what "
            "was extracted is kept, the same command with a higher number goes on"
        )
    elif report.too_many_failures:
        lines.append(
            f"more than the {report.allowed_failed_videos} allowed: mend or remove them and run again, "
            f"or accept them with {accept_by}"
        )
    return "\n".join(lines)


def _labels(report: ExtractReport) -> str:
    if not (report.labelled_videos or report.broken_labels):
        return f"hand labels: none; {HANDS_NEED_LABELS}"
    broken = f", {report.broken_labels} label files are broken" if report.broken_labels else ""
    return f"hand labels: {report.labelled_videos} videos{broken} (thinkjepa-data check tells more)"
