"""The summary of an extraction, for people."""

from __future__ import annotations

from collections import Counter

from thinkjepa.pipeline.units import counted
from thinkjepa.stages.data.joints import HANDS_NEED_LABELS
from thinkjepa.stages.data.repeated_frames import describe_repeats
from thinkjepa.stages.extract.extraction import ExtractReport


def describe_report(
    report: ExtractReport, *, accept_by: str = "--max-failures", retry_by: str = "--retry-failed"
) -> str:
    """Some lines: what was done, what failed and why, what to do next.

    `accept_by` and `retry_by` are how the reader accepts failures, and has failed clips tried again.
    """
    rate = f", {report.extracted / report.seconds:.2f} clips/s" if report.extracted and report.seconds else ""
    rates = "cut by index" if report.dense_fps is None else f"dense windows at {report.dense_fps:g} fps"
    failed = f" ({report.failed_videos} failed)" if report.failed_videos else ""
    remain = f", {report.remaining_clips} left for the next run" if report.remaining_clips else ""
    lines = [
        f"{counted(report.videos, 'video')}{failed}, {counted(report.clips, 'clip')}, {rates}: "
        f"{report.extracted} extracted, {report.already_there} already there, "
        f"{report.failed_clips} failed{remain} ({report.seconds:.1f} s{rate})",
        f"thinker set {report.thinker_set}, encoder set {report.encoder_set} in {report.cache_dir}",
    ]
    if warning := describe_repeats(report.repeated_frames, fps=report.dense_fps):
        lines.append(f"warning: {warning}")
    if report.repeats:
        files = counted(len(report.repeats), "file")
        lines.append(f"same content as another file: {files}, not taken again")
    lines.append(_labels(report))
    if report.failed_videos:
        failures = {(item.stage, item.video) for item in report.failures if item.stage != "labels"}
        stages = Counter(stage for stage, _ in failures)
        reasons = ", ".join(f"{number} at {stage}" for stage, number in sorted(stages.items()))
        videos = counted(report.failed_videos, "video")
        lines.append(f"{videos} failed ({reasons}): thinkjepa-cache info lists them")
    if report.failed_before:
        clips = counted(report.failed_before, "clip")
        lines.append(f"{clips} failed in an earlier run: {retry_by} tries them again")
    limit = report.allowed_failed_videos
    if report.stopped_early:
        lines.append(
            f"stopped early: more than the {limit} that {accept_by} accepts; what was extracted is kept, the "
            "same command with a higher number goes on"
        )
    elif report.too_many_failures:
        more = "" if limit is None else f"more than the {limit} allowed: "
        lines.append(f"{more}mend or remove what failed and run again, or accept it with {accept_by}")
    return "\n".join(lines)


def _labels(report: ExtractReport) -> str:
    if not (report.labelled_videos or report.broken_labels):
        return f"hand labels: none; {HANDS_NEED_LABELS}"
    broken = f", {counted(report.broken_labels, 'label file')} broken" if report.broken_labels else ""
    return (
        f"hand labels: {counted(report.labelled_videos, 'video')}{broken} (thinkjepa-data check tells more)"
    )
