"""Stage one: plan the clips of a folder, run both frozen models once over the missing ones, commit.

The clips that miss features are cut into units, a shard of each set, and units into batches, in the order of
the plan. A batch is committed as a whole, so a killed run continues at a batch border and ends with the same
cache.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from thinkjepa.cache import ClipRow, Failure, FeatureSet, Kind, WriteSession
from thinkjepa.cache.records import set_differences
from thinkjepa.stages.data.cutting.folder import plan_folder, wanted_videos
from thinkjepa.stages.data.cutting.reading import ClipFile
from thinkjepa.stages.data.decoding.client import VideoDecoder
from thinkjepa.stages.data.history import describe_histories
from thinkjepa.stages.data.labels.readers import LabelFolder
from thinkjepa.stages.data.labels.storing import LabelReport, store_labels
from thinkjepa.stages.data.plan import ClipSettings, PlannedFolder
from thinkjepa.stages.data.repeated_frames import describe_repeats
from thinkjepa.stages.data.short_videos import describe_short, refusal
from thinkjepa.stages.device import torch_threads
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.figures import require_space
from thinkjepa.stages.extract.models.costs import PromptSizes
from thinkjepa.stages.extract.models.digests import is_identified
from thinkjepa.stages.extract.models.pair import TRANSFORMERS, FrozenModels, Storing
from thinkjepa.stages.extract.remembered import extraction_record
from thinkjepa.stages.extract.report import ExtractReport, Tally
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings, VllmSettings
from thinkjepa.stages.extract.work.forward import with_video
from thinkjepa.stages.extract.work.units import (
    BatchDone,
    Job,
    OnBatch,
    Target,
    Unit,
    UnitFiller,
    pending_clips,
    plan_units,
)
from thinkjepa.stages.progress import Progress
from thinkjepa.stages.signals import Stopping, noted_signals


def extract(
    videos: Path,
    cache_dir: Path,
    *,
    clips: ClipSettings,
    models: ModelSettings,
    execution: ExecutionSettings,
    progress: Progress,
    vllm: VllmSettings = TRANSFORMERS,
    clips_file: Path | None = None,
) -> ExtractReport:
    """Write the features of every clip of `videos` that the cache does not hold yet.

    The rule of `clips` cuts them, or the table `clips_file` names them. Videos and clips that fail are
    recorded in the cache and in the report, and the others are extracted. Raises StageError or CacheError
    where nothing can be done.
    """
    started = time.monotonic()
    files, table = wanted_videos(videos, clips_file, clips)
    limit = execution.failure_limit(num_videos=len(files))
    frozen = _find_models(clips, models, execution, vllm, progress)
    with (
        torch_threads(execution.threads),
        WriteSession(cache_dir, on_wait=progress.note if execution.wait else None) as session,
    ):
        _note_other_clips(session, clips_file, progress)
        planned = _plan(files, videos, clips, execution, limit, progress, table)
        wanted = frozen.sets(
            planned.settings,
            Storing(execution.shard_mb, execution.codec, models.fp8),
            batch_size=execution.clips_per_batch(frozen.device.type),
        )
        session.add_clips(planned.clips)
        labels = _store_labels(session, videos, planned, progress)
        sets = {kind: session.resolve(item) for kind, item in wanted.items()}
        _note_other_sets(session, sets, progress)
        folders = {kind: model.folder for kind, model in frozen.by_kind.items()}
        record = extraction_record(
            sets, planned.settings, models, vllm, folders, dtype=frozen.dtype, clips_file=clips_file
        )
        before = _done(session, sets)
        known, unfinished = _earlier_failures(session, sets, planned.clips, again=execution.retry_failed)
        tally = Tally(progress, limit, [*planned.failures, *(known | unfinished).values()])
        if not tally.over_limit:
            pending = [clip for clip in planned.clips if clip.clip_id not in known]
            target = Target(cache_dir.absolute(), session.token, sets)
            job = Job(target, planned.settings, models, execution, vllm)
            before = _extract_pending(pending, planned, session, job, frozen, tally, record)
        done = _finish(session, sets, planned, tally, labels, record)
    return _report(
        cache_dir,
        planned,
        sets,
        tally,
        labels,
        before=before,
        done=done,
        failed_before=len(known | unfinished),
        seconds=time.monotonic() - started,
    )


def _finish(
    session: WriteSession,
    sets: Mapping[Kind, FeatureSet],
    planned: PlannedFolder,
    tally: Tally,
    labels: LabelReport,
    record: Mapping[str, Any],
) -> set[str]:
    """Join what was written and record failures and settings. Returns the clips with all features."""
    if not tally.over_limit:
        for item in sets.values():
            session.finish(item)
    done = _done(session, sets)
    if any(clip.clip_id in done for clip in planned.clips):
        session.remember(record)
    short = [video.record for video in planned.too_short]
    session.record_failures([*tally.failures, *short, *labels.failures], videos=planned.names)
    return done


def _find_models(
    clips: ClipSettings,
    models: ModelSettings,
    execution: ExecutionSettings,
    vllm: VllmSettings,
    progress: Progress,
) -> FrozenModels:
    """The models, described. Raises StageError for clips that they do not take, before planning."""
    frozen = FrozenModels.find(models, device=execution.device, vllm=vllm, batch_size=execution.batch_size)
    for model in frozen.by_kind.values():
        if not is_identified(model.folder):
            progress.note(f"reading the weights of {model.folder.described} to identify them, once")
    for model in frozen.by_kind.values():
        model.arrays(clips)
    return frozen


def _plan(
    files: Sequence[Path],
    videos: Path,
    clips: ClipSettings,
    execution: ExecutionSettings,
    limit: int | None,
    progress: Progress,
    table: ClipFile | None,
) -> PlannedFolder:
    with VideoDecoder(timeout_s=execution.decode_timeout) as decoder:
        planned = plan_folder(
            files, videos, clips, decoder=decoder, progress=progress, failure_limit=limit, table=table
        )
    if planned.too_short and not planned.clips:
        raise StageError(refusal(planned.too_short, failed=len(planned.failures)))
    if line := describe_short(planned.too_short):
        progress.note(line)
    if warning := describe_repeats(planned.repeated_frames, fps=planned.fps):
        progress.note(f"warning: {warning}")
    if line := describe_histories(planned.histories):
        progress.note(line)
    return planned


def _store_labels(
    session: WriteSession, videos: Path, planned: PlannedFolder, progress: Progress
) -> LabelReport:
    """Store new and changed hand labels of the planned videos."""
    sources = [video.source for video in planned.videos.values()]
    return store_labels(
        session,
        sources,
        LabelFolder(videos, [source.path for source in sources]),
        num_frames=lambda video: len(planned.videos[video.digest].info.times_s),
        progress=progress,
    )


def _report(
    cache_dir: Path,
    planned: PlannedFolder,
    sets: Mapping[Kind, FeatureSet],
    tally: Tally,
    labels: LabelReport,
    *,
    before: set[str],
    done: set[str],
    failed_before: int,
    seconds: float,
) -> ExtractReport:
    """The result of a run. `before` and `done` are the clips with features before and after it."""
    ready = sorted(clip.clip_id for clip in planned.clips if clip.clip_id in done)
    failed = {failure.clip_id for failure in tally.failures}
    lost = [clip.clip_id in failed for clip in planned.clips if clip.clip_id not in done]
    return ExtractReport(
        cache_dir=str(cache_dir),
        thinker_set=sets["thinker"].name,
        encoder_set=sets["encoder"].name,
        history_set=sets["history"].name if "history" in sets else "",
        videos=planned.num_videos,
        clips=len(planned.clips),
        extracted=sum(clip_id not in before for clip_id in ready),
        already_there=sum(clip_id in before for clip_id in ready),
        failed_clips=sum(lost),
        remaining_clips=len(lost) - sum(lost),
        labelled_videos=labels.labelled_videos,
        broken_labels=len(labels.failures),
        failed_videos=len({failure.video for failure in tally.failures}),
        failed_before=failed_before,
        allowed_failed_videos=tally.limit,
        stopped_early=tally.over_limit,
        seconds=seconds,
        failures=[*tally.failures, *labels.failures],
        too_short=planned.too_short,
        repeats=planned.repeats,
        dense_fps=planned.fps,
        repeated_frames=planned.repeated_frames,
        histories=planned.histories,
        clip_ids=ready,
    )


def _note_other_sets(session: WriteSession, sets: Mapping[Kind, FeatureSet], progress: Progress) -> None:
    """Note where features go to another set than in the last extraction, and which setting does it."""
    last = session.last_extraction
    for kind, item in sets.items():
        before = session.feature_sets.get(last.get(f"{kind}_set", ""))
        if before is not None and before.name != item.name:
            apart = set_differences([before, item])
            progress.note(
                f"another {kind} set than in the last extraction: {item.name} ({apart[item.name]}), "
                f"before {before.name} ({apart[before.name]})"
            )


def _note_other_clips(session: WriteSession, clips_file: Path | None, progress: Progress) -> None:
    """Note clips by the rule in a cache whose last extraction had a table: training takes both."""
    before = session.last_extraction.get("clips_file")
    if before and clips_file is None:
        progress.note(
            f"warning: this cache's last extraction took its clips from {before!r} (--clips), these are cut "
            "by the rule; training takes all clips of a cache"
        )


def _done(session: WriteSession, sets: Mapping[Kind, FeatureSet]) -> set[str]:
    """Clips that readers find in all sets."""
    return set.intersection(*(session.done_clip_ids(item) for item in sets.values()))


def _earlier_failures(
    session: WriteSession, sets: Mapping[Kind, FeatureSet], clips: Sequence[ClipRow], *, again: bool
) -> tuple[dict[str, Failure], dict[str, Failure]]:
    """Failures of earlier runs in complete shards and in unfinished ones, none where `again` tries them."""
    if again:
        for item in sets.values():
            session.retry_unfinished_failures(item)
        return {}, {}
    complete, unfinished = session.failed_clips, session.unfinished_failures
    return _of_clips(clips, map(complete, sets.values())), _of_clips(clips, map(unfinished, sets.values()))


def _of_clips(clips: Sequence[ClipRow], by_set: Iterable[Mapping[str, Failure]]) -> dict[str, Failure]:
    """Failures of clips in one set or another, by clip id."""
    return {
        clip.clip_id: with_video(reasons[clip.clip_id], clip)
        for reasons in by_set
        for clip in clips
        if clip.clip_id in reasons
    }


def _extract_pending(
    pending: Sequence[ClipRow],
    planned: PlannedFolder,
    session: WriteSession,
    job: Job,
    frozen: FrozenModels,
    tally: Tally,
    record: Mapping[str, Any],
) -> set[str]:
    """Fill the shards of all pending clips, here or on a cluster. Returns the clips that needed nothing.

    `record` is remembered as the last extraction from the first stored clip on, in a new cache before it: a
    run that is killed between the two is then continued with the same settings. Ctrl-C, SIGTERM and too many
    failures end it after a batch. Raises StageError where the disk is too small.
    """
    sets, progress = job.target.sets, tally.progress
    if not job.execution.ignore_space:
        require_space(session, sets, pending)
    units = plan_units(session, sets, pending)
    if units:
        _announce(units, planned, frozen, workers=job.execution.workers, progress=progress)
    missing = {clip_id for unit in units for clip_id in pending_clips(session, sets, unit)}
    if missing:
        progress.begin("extracting", total=len(missing), unit="clips")
        if not session.last_extraction:
            session.remember(record)
    with noted_signals(progress) as stopping:

        def on_batch(done: BatchDone) -> bool:
            tally.add(done)
            if done.stored:
                session.remember(record)
            stopping.over_limit = tally.over_limit
            return not stopping.asked

        try:
            if units:
                _fill(units, planned, session, job, frozen, on_batch, stopping)
            stopping.end()
        except (KeyboardInterrupt, SystemExit):
            left = {clip_id for unit in units for clip_id in pending_clips(session, sets, unit)}
            left |= {failure.clip_id for failure in tally.failures}
            kept = sum(clip.clip_id not in left for clip in planned.clips)
            progress.note(
                f"stopped: {kept} of {len(planned.clips)} clips are in {str(session.root)!r}; the same "
                "command continues"
            )
            raise
    return {clip.clip_id for clip in pending} - missing


def _fill(
    units: Sequence[Unit],
    planned: PlannedFolder,
    session: WriteSession,
    job: Job,
    frozen: FrozenModels,
    on_batch: OnBatch,
    stopping: Stopping,
) -> None:
    """Run the models over units, in this process or on a cluster."""
    if job.execution.on_cluster:
        from thinkjepa.stages.extract.cluster import run_on_cluster  # dask takes a second to import

        run_on_cluster(units, planned.videos, session, job, on_batch, stopping)
    else:
        with UnitFiller.ready(job, frozen) as filler:
            filler.fill(units, planned.videos, on_batch=on_batch)


def _announce(
    units: Sequence[Unit], planned: PlannedFolder, frozen: FrozenModels, *, workers: int, progress: Progress
) -> None:
    """Note which clips the thinker's processor will refuse, and which models are loaded."""
    kinds = {kind for unit in units for kind in unit.shards}
    clips = [clip for unit in units if "thinker" in unit.shards for clip in unit.clips]
    if clips:
        frozen.thinker.load_processor()
        prompts = PromptSizes.count(clips, planned.videos, frozen.thinker)
        for problem in prompts.problems(clips):
            progress.note(f"warning: {problem}")
    models = dict.fromkeys(model.folder.described for kind, model in frozen.by_kind.items() if kind in kinds)
    copies = f", {workers} copies" if workers > 1 else ""
    progress.note(f"loading {', '.join(models)}{copies} ...")
