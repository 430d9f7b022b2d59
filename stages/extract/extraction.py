"""Stage one: plan the clips of a folder, run the two frozen models once over what is missing, commit.

The clips that miss features are cut into batches in the order of the plan. A batch is committed as a
whole, so a run that was killed continues at a batch boundary and ends with the same cache.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from thinkjepa.cache import ClipRow, Failure, Kind, SetWriter, WriteSession, done_clip_ids
from thinkjepa.stages.data.catalog import PlannedFolder, plan_folder
from thinkjepa.stages.data.clips import ClipSettings
from thinkjepa.stages.data.decode_process import VideoDecoder
from thinkjepa.stages.data.labels.storing import LabelReport, store_labels
from thinkjepa.stages.data.videos import find_videos
from thinkjepa.stages.extract.batches import ClipDecoding, run_batch, with_video
from thinkjepa.stages.extract.feature_sets import Storing
from thinkjepa.stages.extract.frozen_models import TRANSFORMERS, FrozenModels
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings, allowed_failures
from thinkjepa.stages.extract.vllm_settings import VllmSettings
from thinkjepa.stages.progress import Progress


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
    labelled_videos: int = 0
    broken_labels: int = 0
    """Of planned videos. A broken label file is listed and counts as no failure of its video."""
    failed_videos: int = 0
    allowed_failed_videos: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    repeats: list[tuple[str, str]] = field(default_factory=list)
    clip_ids: list[str] = field(default_factory=list)
    """Clips of this folder that have features in both sets."""

    @property
    def too_many_failures(self) -> bool:
        return self.failed_videos > self.allowed_failed_videos

    def to_json(self) -> dict[str, Any]:
        numbers = {name: value for name, value in asdict(self).items() if name != "clip_ids"}
        return {**numbers, "seconds": round(self.seconds, 3), "too_many_failures": self.too_many_failures}


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
    frozen = FrozenModels.find(models, device=execution.device, vllm=vllm, batch_size=execution.batch_size)
    wanted = frozen.sets(clips, Storing(execution.shard_mb, execution.codec, models.fp8))
    decoding = VideoDecoder(timeout_s=execution.decode_timeout)
    with WriteSession(cache_dir) as session, decoding as decoder, frozen:
        planned = plan_folder(files, videos, clips, decoder=decoder, progress=progress)
        session.add_clips(planned.clips)
        labels = _store_labels(session, planned, videos, progress)
        thinker, encoder = (session.resolve(item) for item in wanted)
        with session.writer(thinker) as thoughts, session.writer(encoder) as latents:
            writers: dict[Kind, SetWriter] = {"thinker": thoughts, "encoder": latents}
            missing = {kind: _missing(writer, planned.clips) for kind, writer in writers.items()}
            failures = [
                *planned.failures,
                *_extract_missing(planned, frozen, decoder, writers, missing, execution, progress),
            ]
            done = done_clip_ids(thoughts) & done_clip_ids(latents)
        session.record_failures([*failures, *labels.failures], videos=planned.names)
    pending = missing["thinker"] | missing["encoder"]
    clip_ids = sorted(clip.clip_id for clip in planned.clips if clip.clip_id in done)
    failed_videos = {failure.video for failure in failures}
    return ExtractReport(
        cache_dir=str(cache_dir),
        thinker_set=thinker.name,
        encoder_set=encoder.name,
        videos=planned.num_videos,
        clips=len(planned.clips),
        extracted=sum(clip_id in pending for clip_id in clip_ids),
        already_there=len(planned.clips) - len(pending),
        failed_clips=len(planned.clips) - len(clip_ids),
        labelled_videos=labels.labelled_videos,
        broken_labels=len(labels.failures),
        failed_videos=len(failed_videos),
        allowed_failed_videos=allowed_failures(execution.max_failures, num_videos=planned.num_videos),
        seconds=time.monotonic() - started,
        failures=[*failures, *labels.failures],
        repeats=planned.repeats,
        clip_ids=clip_ids,
    )


def _store_labels(
    session: WriteSession, planned: PlannedFolder, folder: Path, progress: Progress
) -> LabelReport:
    return store_labels(
        session,
        planned.paths.items(),
        folder,
        num_frames=lambda digest, path: planned.num_frames[digest],
        progress=progress,
    )


def _missing(writer: SetWriter, clips: Sequence[ClipRow]) -> frozenset[str]:
    """Clips of the plan without features in the writer's set."""
    return frozenset(clip.clip_id for clip in clips) - done_clip_ids(writer)


def _extract_missing(
    planned: PlannedFolder,
    frozen: FrozenModels,
    decoder: VideoDecoder,
    writers: Mapping[Kind, SetWriter],
    missing: Mapping[Kind, frozenset[str]],
    execution: ExecutionSettings,
    progress: Progress,
) -> list[Failure]:
    """Run what is missing, batch by batch in the order of the plan. Returns what failed."""
    pending = [clip for clip in planned.clips if any(clip.clip_id in ids for ids in missing.values())]
    if not pending:
        return []
    frozen.load(kind for kind, ids in missing.items() if ids)
    decoding = ClipDecoding(decoder, planned)
    failures: list[Failure] = []
    size = execution.clips_per_batch(frozen.thinker.device.type)
    progress.begin("extracting", total=len(pending), unit="clips")
    for start in range(0, len(pending), size):
        batch = pending[start : start + size]
        names = {clip.clip_id: clip for clip in batch}
        for kind, outcome in run_batch(batch, missing, frozen, decoding, batch_size=size).items():
            refused = writers[kind].append(outcome.features, outcome.failures)
            named = [with_video(failure, names[failure.clip_id]) for failure in refused]
            _record_new([*outcome.failures, *named], failures, progress)
        progress.advance(len(batch))
    return failures


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
