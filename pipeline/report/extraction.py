"""The estimate and the result of an extraction as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from thinkjepa.pipeline.cli.console import counted, human_bytes, human_hours
from thinkjepa.stages.data.history import describe_histories
from thinkjepa.stages.data.joints import HANDS_NEED_LABELS
from thinkjepa.stages.data.repeated_frames import describe_repeats
from thinkjepa.stages.data.short_videos import REMEDY, describe_short
from thinkjepa.stages.extract.figures import Estimate, FolderEstimate, ModelFigures
from thinkjepa.stages.extract.report import ExtractReport

TERA = 1e12


def describe_estimate(figures: FolderEstimate) -> str:
    """Clips and frames, a table of the models, memory, time, then warnings and assumptions."""
    if not figures.clips:
        return "\n".join(_nothing_lines(figures))
    lines = [_folder_line(figures), _frames_line(figures)]
    if line := describe_histories(figures.histories):
        lines.append(f"history {line}")
    if isinstance(figures, Estimate):
        lines += ["", *_table(_model_rows(figures)), ""]
    if figures.disk_bytes is not None:
        about = "" if isinstance(figures, Estimate) else "about "
        lines.append(
            f"disk    {about}{human_bytes(figures.disk_bytes)}{_labels_of(figures)}{_per_thousand(figures)}"
        )
    if isinstance(figures, Estimate):
        lines += [_memory_line(figures), _time_line(figures)]
    if short := describe_short(figures.too_short):
        lines.append(short)
    lines += [f"warning: {text}" for text in _failure_warnings(figures) + figures.warnings]
    lines += [f"assumed: {text}" for text in figures.assumptions]
    return "\n".join(lines)


def _nothing_lines(figures: FolderEstimate) -> list[str]:
    """Reasons why no clip can be cut, instead of a table of zeros."""
    lines = [_folder_line(figures), *(f"warning: {text}" for text in _failure_warnings(figures))]
    lines.append("nothing to extract: no video gives a clip")
    if figures.too_short:
        lines += [describe_short(figures.too_short), REMEDY]
    return lines


def _folder_line(figures: FolderEstimate) -> str:
    repeats = f", {len(figures.repeats)} repeat another's content" if figures.repeats else ""
    rate = "" if figures.dense_fps is None else f" at {figures.dense_fps:g} fps"
    usable = f"{figures.usable_videos} with clips, " if figures.usable_videos < figures.videos else ""
    return (
        f"{counted(figures.videos, 'video')}{repeats}, {usable}{human_hours(figures.video_hours)}: "
        f"{counted(figures.clips, 'clip')}{rate}, "
        f"{figures.dtype}{f' on {figures.device}' if isinstance(figures, Estimate) else ''}"
    )


def _frames_line(figures: FolderEstimate) -> str:
    return (
        f"frames  {figures.thinker_frames:,} for the thinker, {figures.encoder_frames:,} for the encoder in "
        f"{figures.encoder_windows:,} windows"
    )


def _model_rows(figures: Estimate) -> list[tuple[str, ...]]:
    """A row per figure, a column per set that is filled; the encoder's weights count in its own column."""
    named = {"thinker": figures.thinker, "encoder": figures.encoder, "history": figures.history}
    held = {name: model for name, model in named.items() if model}
    models, clips = list(held.values()), max(1, figures.clips)
    return [
        ("", *held),
        ("model", *[model.model for model in models]),
        (
            "parameters",
            *[f"{model.parameters / 1e6:,.1f} M" if model.parameters else "-" for model in models],
        ),
        ("weights", *[human_bytes(model.weights_bytes) if model.weights_bytes else "-" for model in models]),
        ("tokens per clip", *[_tokens(model) for model in models]),
        ("compute per clip", *[f"{model.total_flops / clips / TERA:.3g} TFLOP" for model in models]),
        ("disk per clip", *[human_bytes(model.disk_bytes / clips) for model in models]),
        *_array_rows(models, clips),
        ("disk", *[human_bytes(model.disk_bytes) for model in models]),
    ]


def _array_rows(models: Sequence[ModelFigures], clips: int) -> list[tuple[str, ...]]:
    """A row per kept array, with its bytes a clip in each model's column."""
    names = dict.fromkeys(name for model in models for name in model.array_bytes)
    return [
        (
            f"  {name}",
            *[
                human_bytes(model.array_bytes[name] / clips) if name in model.array_bytes else "-"
                for model in models
            ],
        )
        for name in names
    ]


def _tokens(model: ModelFigures) -> str:
    if model.tokens_per_clip is None:
        return "-"
    least, most = model.tokens_per_clip
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _labels_of(figures: FolderEstimate) -> str:
    if not figures.label_bytes:
        return ""
    return f", {human_bytes(figures.label_bytes)} of it hand labels"


def _per_thousand(figures: FolderEstimate) -> str:
    if not figures.clips or figures.disk_bytes is None:
        return ""
    return f", {human_bytes(1000 * figures.disk_bytes / figures.clips)} per 1,000 clips"


def _memory_line(figures: Estimate) -> str:
    memory = figures.memory
    device, weights = human_bytes(memory.device_bytes), human_bytes(memory.weights_bytes)
    host = human_bytes(memory.host_bytes)
    return (
        f"memory  {device} on the device (weights {weights}), {host} on the host, "
        f"at --batch-size {figures.batch_size}"
    )


def _time_line(figures: Estimate) -> str:
    peak = f"{figures.tflops:.3g} TFLOP/s {'measured here' if figures.tflops_measured else 'given'}"
    decoded = f"from {counted(figures.decode_clips, 'clip')} measured here"
    return (
        f"time    {human_hours(figures.hours)}: models ~{human_hours(figures.model_hours)} ({peak}, "
        f"{figures.utilisation:.0%} used), decoding ~{human_hours(figures.decode_hours)} ({decoded})"
    )


def _failure_warnings(figures: FolderEstimate) -> list[str]:
    if not figures.failed_videos:
        return []
    lines = [f"{failure.video!r} fails [{failure.stage}]: {failure.reason}" for failure in figures.failures]
    limit = figures.allowed_failed_videos
    if figures.failed_videos > (limit or 0):
        allowed = "" if limit is None else f", {limit} allowed"
        lines.append(
            f"{counted(figures.failed_videos, 'video')} would fail{allowed}: mend or remove them, or accept "
            "them with --max-failures"
        )
    return lines


def describe_report(
    report: ExtractReport, *, accept_by: str = "--max-failures", retry_by: str = "--retry-failed"
) -> str:
    """A few lines: clips extracted, failures with their reasons, next steps.

    `accept_by` and `retry_by` are how the reader accepts failures, and has failed clips tried again.
    """
    rate = f", {report.extracted / report.seconds:.2f} clips/s" if report.extracted and report.seconds else ""
    rates = "cut by index" if report.dense_fps is None else f"dense windows at {report.dense_fps:g} fps"
    left_out = {"failed": report.failed_videos, "too short": len(report.too_short)}
    named = ", ".join(f"{number} {what}" for what, number in left_out.items() if number)
    without = f" ({named})" if named else ""
    remain = f", {report.remaining_clips} left for the next run" if report.remaining_clips else ""
    history = f", history set {report.history_set}" if report.history_set else ""
    lines = [
        f"{counted(report.videos, 'video')}{without}, {counted(report.clips, 'clip')}, {rates}: "
        f"{report.extracted} extracted, {report.already_there} already there, "
        f"{report.failed_clips} failed{remain} ({report.seconds:.1f} s{rate})",
        f"thinker set {report.thinker_set}, encoder set {report.encoder_set}{history} in {report.cache_dir}",
    ]
    if warning := describe_repeats(report.repeated_frames, fps=report.dense_fps):
        lines.append(f"warning: {warning}")
    if report.repeats:
        files = counted(len(report.repeats), "file")
        lines.append(f"same content as another file: {files}, not taken again")
    lines.append(_labels(report))
    if short := describe_short(report.too_short):
        lines.append(short)
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
            "same command with a higher number continues"
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
