"""Units of extraction, one shard of each set by one process, and the pipeline that fills their shards.

The plan is a pure function of the clips, the cache's content and the assignments of an interrupted run. The
number of workers has no part in it. Batch after batch goes through the models, each committed as a whole, in
the process that holds the cache or in any number of others, on any machine that has the files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from thinkjepa.cache import ClipRow, Failure, FeatureSet, Kind, OpenShard, WriteSession
from thinkjepa.stages.data.decoding.client import VideoDecoder
from thinkjepa.stages.data.plan import ClipSettings, PlannedVideo
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.models.pair import FrozenModels, Storing
from thinkjepa.stages.extract.models.runtime import decoder_beside, keep_freed_memory, thread_beside
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings, VllmSettings
from thinkjepa.stages.extract.work.forward import (
    Inputs,
    Outcome,
    RowLimit,
    prepare_batch,
    run_batch,
    with_video,
)
from thinkjepa.stages.extract.work.frames import ClipDecoding


@dataclass(frozen=True, slots=True)
class Unit:
    """Clips in the order of the plan, and the shard that receives them in each set that misses them."""

    clips: tuple[ClipRow, ...]
    shards: Mapping[Kind, int]


def plan_units(
    session: WriteSession, sets: Mapping[Kind, FeatureSet], clips: Sequence[ClipRow]
) -> list[Unit]:
    """Units for all `clips` without features: those that an interrupted run assigned, and new ones.

    Assigns new clips to shards, durably. Clips that both sets miss are one unit, and decoded once.
    """
    shards = {kind: dict(session.assigned(item)) for kind, item in sets.items()}
    missing = {kind: _missing(session, item, clips, shards[kind]) for kind, item in sets.items()}
    pending = [clip.clip_id for clip in clips if any(clip.clip_id in ids for ids in missing.values())]
    size = min(item.rows_per_shard for item in sets.values())
    for kind, item in sets.items():
        groups = _groups(pending, missing[kind], size)
        shards[kind] |= zip(session.assign(item, groups), groups, strict=True)
    together: dict[tuple[str, ...], dict[Kind, int]] = {}
    for kind, assigned in shards.items():
        for number, group in assigned.items():
            together.setdefault(group, {})[kind] = number
    by_id = {clip.clip_id: clip for clip in clips}
    return [
        Unit(tuple(by_id[clip_id] for clip_id in group if clip_id in by_id), numbers)
        for group, numbers in together.items()
    ]


def pending_clips(session: WriteSession, sets: Mapping[Kind, FeatureSet], unit: Unit) -> set[str]:
    """Clips of a unit that are not processed yet, in one set or another."""
    clip_ids = [clip.clip_id for clip in unit.clips]
    return {
        clip_id
        for kind, shard in unit.shards.items()
        for clip_id in session.pending(sets[kind], shard, clip_ids)
    }


def _missing(
    session: WriteSession,
    feature_set: FeatureSet,
    clips: Sequence[ClipRow],
    assigned: Mapping[int, tuple[str, ...]],
) -> set[str]:
    """Clips without features in a set that no shard has been assigned to."""
    planned = {clip_id for group in assigned.values() for clip_id in group}
    return {clip.clip_id for clip in clips} - session.done_clip_ids(feature_set) - planned


def _groups(pending: Sequence[str], missing: set[str], size: int) -> list[tuple[str, ...]]:
    """Runs of `size` pending clips, of each those that one set misses: so the sets' groups match."""
    runs = [pending[start : start + size] for start in range(0, len(pending), size)]
    groups = [tuple(clip_id for clip_id in run if clip_id in missing) for run in runs]
    return [group for group in groups if group]


@dataclass(frozen=True, slots=True)
class Target:
    """The cache that units are written to, described for any process."""

    root: Path
    token: str
    """The token of the session that assigned the shards."""
    sets: Mapping[Kind, FeatureSet]


@dataclass(frozen=True, slots=True)
class BatchDone:
    """A committed batch: how many clips it processed, and those that failed."""

    clips: int
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()
    """Messages for the user."""

    @property
    def stored(self) -> bool:
        """True if any clip has new features."""
        return self.clips > len({failure.clip_id for failure in self.failures})


OnBatch = Callable[[BatchDone], bool]
"""Called after each batch. False stops the work there."""


@dataclass(frozen=True, slots=True)
class Job:
    """The settings of the work on units: plain data, for other machines too."""

    target: Target
    clips: ClipSettings
    models: ModelSettings
    execution: ExecutionSettings
    vllm: VllmSettings


@dataclass(slots=True)
class UnitFiller:
    """Fills units in turn. The models are loaded when the first unit needs them, and stay loaded.

    Three things happen at once, also across the borders of units: batch n goes through the models, batch
    n + 1 is decoded and prepared, and batch n - 1 is checked and written. Memory holds these three batches,
    however many there are.
    """

    target: Target
    frozen: FrozenModels
    decoder: VideoDecoder
    batch_size: int
    rows: RowLimit
    ahead: ThreadPoolExecutor
    """One thread, as long-lived as the decoder: the decoder's process ends with the thread that began it."""
    after: ThreadPoolExecutor
    """One thread, which writes."""
    _loaded: set[Kind] = field(default_factory=set)

    @classmethod
    @contextmanager
    def ready(cls, job: Job, frozen: FrozenModels | None = None) -> Iterator[UnitFiller]:
        """A filler with a decoder, and with `frozen`, or models that this process finds by itself.

        Raises StageError where they would make other features than the job's.
        """
        execution = job.execution
        layers = job.target.sets["thinker"].layers  # may be more than the settings ask for
        if frozen is None or frozen.thinker.layers != layers:
            frozen = FrozenModels.find(
                replace(job.models, layers=",".join(map(str, layers))),
                device=execution.device,
                vllm=job.vllm,
                batch_size=execution.batch_size,
            )
            _refuse_other_models(frozen, job)
        device = frozen.device.type
        batch_size = execution.clips_per_batch(device)
        if device == "cpu":
            keep_freed_memory()
        with (
            decoder_beside(device, timeout_s=execution.decode_timeout) as decoder,
            thread_beside(device, name="decode") as ahead,
            thread_beside(device, name="write") as after,
            frozen,
        ):
            yield cls(
                target=job.target,
                frozen=frozen,
                decoder=decoder,
                batch_size=batch_size,
                rows=RowLimit(dict.fromkeys(frozen.by_kind, batch_size)),
                ahead=ahead,
                after=after,
            )

    def fill(
        self,
        units: Sequence[Unit],
        videos: Mapping[str, PlannedVideo],
        *,
        on_batch: OnBatch,
        skipped: Mapping[str, Failure] | None = None,
        one_by_one: bool = False,
    ) -> bool:
        """Process every clip of the units and seal their shards. False where `on_batch` stopped it before.

        Clips in `skipped` are recorded with their failure and not computed. `one_by_one` commits each
        clip by itself before the next one is touched, with the same features up to rounding: forwards have
        as many rows, with the clip in another row. Raises CacheError where the shards cannot be written.
        """
        open_units: list[_OpenUnit] = []
        decoding = ClipDecoding(self.decoder, videos)
        first = next((clip for unit in units for clip in unit.clips), None)
        if first and not self._loaded:
            self.ahead.submit(decoding.open, first)  # the models are loaded meanwhile
        batches = self._batches(units, open_units, skipped or {}, 1 if one_by_one else self.batch_size)
        coming: deque[tuple[_Batch, Future[dict[Kind, Inputs]]]] = deque()
        writing: Future[BatchDone] | None = None
        try:
            while True:
                for batch in islice(batches, (1 if one_by_one else 2) - len(coming)):
                    prepare = partial(prepare_batch, batch.clips, batch.wanted, self.frozen, decoding)
                    coming.append((batch, self.ahead.submit(prepare)))
                if not coming:
                    if writing is not None:
                        on_batch(writing.result())
                    return True
                batch, prepared = coming[0]
                inputs = prepared.result()
                coming.popleft()
                outcomes = run_batch(inputs, self.frozen, self.rows)
                continues = writing is None or on_batch(writing.result())
                writing = self.after.submit(batch.commit, outcomes, self.rows.new_notes())
                del prepared, inputs, outcomes  # tens of megabytes a clip, which the next forward needs
                if one_by_one or not continues:
                    continues = on_batch(writing.result()) and continues
                    writing = None
                if not continues:
                    return False
        finally:
            being_decoded = [future for _, future in coming if not future.cancel() and not future.done()]
            if being_decoded:
                self.decoder.interrupt()  # nobody needs it any more, and its reader may hang
            wait(being_decoded)
            wait([writing] if writing else [])
            for unit in list(open_units):
                unit.close()

    def _batches(
        self,
        units: Sequence[Unit],
        open_units: list[_OpenUnit],
        skipped: Mapping[str, Failure],
        size: int,
    ) -> Iterator[_Batch]:
        """The batches with pending clips, and the last one of each unit, which seals it.

        They are cut at the same borders whatever has been processed: an interruption moves none.
        """
        for unit in units:
            wanted = [kind for kind in unit.shards if kind not in self._loaded]
            self.frozen.load(wanted)
            self._loaded.update(wanted)
            opened = _OpenUnit(self.target, unit, open_units)
            parts = [unit.clips[start : start + size] for start in range(0, len(unit.clips), size)] or [()]
            for number, clips in enumerate(parts, start=1):
                batch = _Batch(clips, opened, opened.missing(clips), skipped, is_last=number == len(parts))
                if batch.is_last or any(batch.missing.values()):
                    yield batch


class _OpenUnit:
    """The open shards of a unit, from its first batch to the last. `open_units` lists all that are open."""

    def __init__(self, target: Target, unit: Unit, open_units: list[_OpenUnit]) -> None:
        self._open_units = open_units
        self.shards: dict[Kind, OpenShard] = {}
        open_units.append(self)
        for kind, number in unit.shards.items():
            self.shards[kind] = OpenShard(target.root, target.sets[kind], number, token=target.token)

    def missing(self, clips: Sequence[ClipRow]) -> dict[Kind, frozenset[str]]:
        """Clips that a shard has neither features nor a failure of."""
        ids = frozenset(clip.clip_id for clip in clips)
        return {
            kind: frozenset() if shard.is_sealed else ids - shard.processed
            for kind, shard in self.shards.items()
        }

    def seal(self) -> None:
        """Make the clips visible."""
        for shard in self.shards.values():
            shard.seal()
        self.close()

    def close(self) -> None:
        """Close the shards. Whoever opens an unsealed one next continues it."""
        for shard in self.shards.values():
            shard.close()
        if self in self._open_units:
            self._open_units.remove(self)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Clips that are computed and committed together."""

    clips: Sequence[ClipRow]
    unit: _OpenUnit
    missing: Mapping[Kind, frozenset[str]]
    skipped: Mapping[str, Failure]
    is_last: bool

    @property
    def wanted(self) -> dict[Kind, frozenset[str]]:
        """Clips to compute, by kind of set."""
        return {kind: ids - self.skipped.keys() for kind, ids in self.missing.items()}

    def commit(self, outcomes: Mapping[Kind, Outcome], notes: tuple[str, ...]) -> BatchDone:
        """Write the outcomes of the batch, and seal its unit after the last one."""
        names = {clip.clip_id: clip for clip in self.clips}
        failures: list[Failure] = []
        for kind, shard in self.unit.shards.items():
            if self.missing[kind]:
                skipped = [
                    self.skipped[clip_id] for clip_id in sorted(self.missing[kind] & self.skipped.keys())
                ]
                failed = [*outcomes[kind].failures, *skipped]
                refused = shard.append(outcomes[kind].features, failed)
                failures += [*failed, *(with_video(failure, names[failure.clip_id]) for failure in refused)]
        if self.is_last:
            self.unit.seal()
        return BatchDone(len(frozenset().union(*self.missing.values())), tuple(failures), notes)


def _refuse_other_models(frozen: FrozenModels, job: Job) -> None:
    """Raise StageError where this process would make other features: other weights, other versions."""
    storing = Storing(job.execution.shard_mb, job.execution.codec, job.models.fp8)
    for kind, item in frozen.sets(job.clips, storing).items():
        wanted = job.target.sets[kind]
        if item.name != wanted.name:
            differing = [name for name in item.origin if item.origin[name] != wanted.origin.get(name)]
            raise StageError(
                f"the {kind} of this process is not the one that the run was planned with "
                f"({', '.join(differing)} differ): install the same versions and models on all machines"
            )
