"""Stage one: plan the clips of a folder, run the two frozen models once over what is missing, commit.

The clips that miss features are cut into units, a shard of each set, and units into batches, in the order of
the plan. A batch is committed as a whole, so a run that was killed continues at a batch boundary and ends
with the same cache.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from thinkjepa.cache import ClipRow, Failure, FeatureSet, Kind, WriteSession
from thinkjepa.cache.records import set_differences
from thinkjepa.stages.data.decoding.client import VideoDecoder
from thinkjepa.stages.data.labels.storing import store_labels
from thinkjepa.stages.data.plan import ClipSettings, PlannedFolder, plan_folder
from thinkjepa.stages.data.repeated_frames import RepeatedFrames, describe_repeats
from thinkjepa.stages.data.videos import find_videos
from thinkjepa.stages.device import torch_threads
from thinkjepa.stages.extract.figures import require_space
from thinkjepa.stages.extract.models.costs import PromptSizes
from thinkjepa.stages.extract.models.pair import TRANSFORMERS, FrozenModels, Storing, latent_arrays
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings, VllmSettings
from thinkjepa.stages.extract.work.forward import with_video
from thinkjepa.stages.extract.work.units import (
    BatchDone,
    Job,
    Target,
    Unit,
    UnitFiller,
    plan_units,
    undecided,
)
from thinkjepa.stages.progress import Progress
from thinkjepa.stages.signals import noted_signals


@dataclass(slots=True)
class ExtractReport:
    """What a run did. Counts of clips are over the planned ones."""

    cache_dir: str
    thinker_set: str
    encoder_set: str
    videos: int
    clips: int
    extracted: int = 0
    already_there: int = 0
    failed_clips: int = 0
    remaining_clips: int = 0
    """Neither failed nor ready: a run that stopped early leaves them to the next one."""
    labelled_videos: int = 0
    broken_labels: int = 0
    """Of planned videos. A broken label file is listed and counts as no failure of its video."""
    failed_videos: int = 0
    failed_before: int = 0
    """Clips that failed in an earlier run and were not tried again."""
    allowed_failed_videos: int | None = None
    """None where no number was given."""
    stopped_early: bool = False
    """More videos failed than were to be accepted: clips are left that nobody has come to."""
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    repeats: list[tuple[str, str]] = field(default_factory=list)
    dense_fps: float | None = None
    """Rate of the dense windows; None where the preset cuts by index."""
    repeated_frames: RepeatedFrames = field(default_factory=RepeatedFrames)
    clip_ids: list[str] = field(default_factory=list)
    """Clips of this folder that have features in both sets."""

    @property
    def too_many_failures(self) -> bool:
        return self.failed_videos > (self.allowed_failed_videos or 0)

    def to_json(self) -> dict[str, Any]:
        numbers = {name: value for name, value in asdict(self).items() if name != "clip_ids"}
        return {
            **numbers,
            "seconds": round(self.seconds, 3),
            "too_many_failures": self.too_many_failures,
            "repeated_frames": self.repeated_frames.to_json(),
        }


def extract(
    videos: Path,
    cache_dir: Path,
    *,
    clips: ClipSettings,
    models: ModelSettings,
    execution: ExecutionSettings,
    progress: Progress,
    vllm: VllmSettings = TRANSFORMERS,
) -> ExtractReport:
    """Write the features of every clip of `videos` that the cache does not hold yet.

    Videos and clips that fail are recorded in the cache and in the report; the others are extracted.
    Raises StageError or CacheError where nothing can be done.
    """
    started = time.monotonic()
    files = find_videos(videos)
    limit = execution.failure_limit(num_videos=len(files))
    frozen = FrozenModels.find(models, device=execution.device, vllm=vllm, batch_size=execution.batch_size)
    storing = Storing(execution.shard_mb, execution.codec, models.fp8)
    batch_size = execution.clips_per_batch(frozen.thinker.device.type)
    for model in frozen.unidentified():
        progress.note(f"reading the weights of {model.described} to identify them, once")
    latent_arrays(frozen.encoder, clips)  # windows that the encoder does not take are refused before planning
    with (
        torch_threads(execution.threads),
        WriteSession(cache_dir, on_wait=progress.note if execution.wait else None) as session,
    ):
        with VideoDecoder(timeout_s=execution.decode_timeout) as decoder:
            planned = plan_folder(
                files, videos, clips, decoder=decoder, progress=progress, failure_limit=limit
            )
        repeated = planned.repeated_frames
        if warning := describe_repeats(repeated, fps=planned.fps):
            progress.note(f"warning: {warning}")
        wanted = frozen.sets(planned.settings, storing, batch_size=batch_size)
        session.add_clips(planned.clips)
        labels = store_labels(
            session,
            [video.source for video in planned.videos.values()],
            videos,
            num_frames=lambda video: len(planned.videos[video.digest].info.times_s),
            progress=progress,
        )
        sets = {item.kind: session.resolve(item) for item in wanted}
        _note_other_sets(session, sets, progress)
        session.remember(frozen.record(sets, planned.settings, models, vllm))
        before = _done(session, sets)
        known, under_way = _tried_in_vain(session, sets, planned.clips, again=execution.retry_failed)
        tally = Tally(progress, limit, [*planned.failures, *(known | under_way).values()])
        if not tally.hopeless:
            pending = [clip for clip in planned.clips if clip.clip_id not in known]
            if not execution.ignore_space:
                require_space(session, sets, pending)
            units = plan_units(session, sets, pending)
            target = Target(cache_dir.absolute(), session.token, sets)
            if units:
                _announce(units, planned, frozen, workers=execution.workers, progress=progress)
            _run(units, planned, session, Job(target, planned.settings, models, execution, vllm), tally)
        if not tally.hopeless:
            for item in sets.values():
                session.finish(item)
        done = _done(session, sets)
        failures = tally.failures
        session.record_failures([*failures, *labels.failures], videos=planned.names)
    clip_ids = sorted(clip.clip_id for clip in planned.clips if clip.clip_id in done)
    failed_videos = {failure.video for failure in failures}
    failed = {failure.clip_id for failure in failures}
    lost = [clip.clip_id in failed for clip in planned.clips if clip.clip_id not in done]
    return ExtractReport(
        cache_dir=str(cache_dir),
        thinker_set=sets["thinker"].name,
        encoder_set=sets["encoder"].name,
        videos=planned.num_videos,
        clips=len(planned.clips),
        extracted=sum(clip_id not in before for clip_id in clip_ids),
        already_there=sum(clip_id in before for clip_id in clip_ids),
        failed_clips=sum(lost),
        remaining_clips=len(lost) - sum(lost),
        labelled_videos=labels.labelled_videos,
        broken_labels=len(labels.failures),
        failed_before=len(known | under_way),
        failed_videos=len(failed_videos),
        allowed_failed_videos=limit,
        stopped_early=tally.hopeless,
        seconds=time.monotonic() - started,
        failures=[*failures, *labels.failures],
        repeats=planned.repeats,
        dense_fps=planned.fps,
        repeated_frames=repeated,
        clip_ids=clip_ids,
    )


def _note_other_sets(session: WriteSession, sets: Mapping[Kind, FeatureSet], progress: Progress) -> None:
    """Say where features go to another set than those of the last extraction, and which setting does it."""
    last = session.last_extraction
    for kind, item in sets.items():
        before = session.feature_sets.get(last.get(f"{kind}_set", ""))
        if before is not None and before.name != item.name:
            apart = set_differences([before, item])
            progress.note(
                f"another {kind} set than in the last extraction: {item.name} ({apart[item.name]}), "
                f"before {before.name} ({apart[before.name]})"
            )


def _done(session: WriteSession, sets: Mapping[Kind, FeatureSet]) -> set[str]:
    """Clips that readers see in all sets."""
    return set.intersection(*(session.done_clip_ids(item) for item in sets.values()))


def _tried_in_vain(
    session: WriteSession, sets: Mapping[Kind, FeatureSet], clips: Sequence[ClipRow], *, again: bool
) -> tuple[dict[str, Failure], dict[str, Failure]]:
    """What earlier runs failed at, in complete shards and in unfinished ones: none of it where it is to be
    tried again.
    """
    if again:
        for item in sets.values():
            session.retry_unfinished_failures(item)
        return {}, {}
    complete, unfinished = session.failed_clips, session.unfinished_failures
    return _of_clips(clips, map(complete, sets.values())), _of_clips(clips, map(unfinished, sets.values()))


def _of_clips(clips: Sequence[ClipRow], by_set: Iterable[Mapping[str, Failure]]) -> dict[str, Failure]:
    """Why clips have no features, in one set or another; by clip id."""
    return {
        clip.clip_id: with_video(reasons[clip.clip_id], clip)
        for reasons in by_set
        for clip in clips
        if clip.clip_id in reasons
    }


@dataclass(slots=True)
class Tally:
    """What came of the batches, shown as they come."""

    progress: Progress
    limit: int | None = None
    """Failed videos beyond which it is no use going on."""
    failures: list[Failure] = field(default_factory=list)

    @property
    def hopeless(self) -> bool:
        """Whether more videos have failed than are accepted."""
        return self.limit is not None and len({failure.video for failure in self.failures}) > self.limit

    def add(self, done: BatchDone) -> None:
        """Count a batch and show what failed in it."""
        _record_new(done.failures, self.failures, self.progress)
        for note in done.notes:
            self.progress.note(note)
        if done.clips:
            self.progress.advance(done.clips)


def _run(
    units: Sequence[Unit], planned: PlannedFolder, session: WriteSession, job: Job, tally: Tally
) -> None:
    """Fill the shards of all units, here or on a cluster.

    Ctrl-C, SIGTERM and too many failures end it behind a batch.
    """
    left = sum(len(undecided(session, job.target.sets, unit)) for unit in units)
    if left:
        tally.progress.begin("extracting", total=left, unit="clips")
    with noted_signals(tally.progress) as stopping:

        def on_batch(done: BatchDone) -> bool:
            tally.add(done)
            stopping.given_up = tally.hopeless
            return not stopping.asked

        if units and job.execution.on_cluster:
            from thinkjepa.stages.extract.cluster import run_on_cluster  # dask takes a second to import

            run_on_cluster(units, planned.videos, session, job, on_batch, stopping)
        elif units:
            with UnitFiller.ready(job) as filler:
                filler.fill(units, planned.videos, on_batch=on_batch)
        stopping.end()


def _announce(
    units: Sequence[Unit], planned: PlannedFolder, frozen: FrozenModels, *, workers: int, progress: Progress
) -> None:
    """Say what the loaded models will refuse, as far as the thinker's processor knows, and what is loaded."""
    kinds = {kind for unit in units for kind in unit.shards}
    asked = [clip for unit in units if "thinker" in unit.shards for clip in unit.clips]
    if asked:
        frozen.thinker.load_processor()
        prompts = PromptSizes.count(asked, planned.videos, frozen.thinker)
        for problem in prompts.problems(asked):
            progress.note(f"warning: {problem}")
    copies = f", {workers} copies" if workers > 1 else ""
    progress.note(f"loading {', '.join(model.described for model in frozen.folders(kinds))}{copies} ...")


def _record_new(found: Sequence[Failure], failures: list[Failure], progress: Progress) -> None:
    """Keep what failed, and show each video's failure once, not for every clip and set."""
    shown = {(failure.video, failure.stage, failure.reason) for failure in failures}
    for failure in found:
        if failure in failures:
            continue
        failures.append(failure)
        if (failure.video, failure.stage, failure.reason) not in shown:
            shown.add((failure.video, failure.stage, failure.reason))
            progress.failed(failure)
