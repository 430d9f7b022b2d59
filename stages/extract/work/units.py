"""Units of extraction: clips whose features fill one shard of each set, by one process.

The plan is a pure function of the clips, of what the cache holds and of what an interrupted run has assigned;
the number of workers has no part in it.

Filling the shards of a unit: batch after batch goes through the models, each committed as a whole.

Runs in the process that holds the cache, or in any number of others, on any machine that sees the files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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

    What is new is assigned here: from now on it is known which clip goes where. Clips that two sets miss
    alike are one unit, and decoded once.
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


def undecided(session: WriteSession, sets: Mapping[Kind, FeatureSet], unit: Unit) -> set[str]:
    """Clips of a unit that nobody has come to, in one set or another."""
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
    """The cache that units are written to, as any process has to know it."""

    root: Path
    token: str
    """The mark of the session that assigned the shards."""
    sets: Mapping[Kind, FeatureSet]


@dataclass(frozen=True, slots=True)
class BatchDone:
    """A batch that has been committed: how many clips were decided by it, and those that failed."""

    clips: int
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()
    """What the user should know of how it went."""


OnBatch = Callable[[BatchDone], bool]
"""Told after each batch; False asks to stop there."""


@dataclass(frozen=True, slots=True)
class Job:
    """All that a process needs to know to work on units: plain data, for other machines too."""

    target: Target
    clips: ClipSettings
    models: ModelSettings
    execution: ExecutionSettings
    vllm: VllmSettings


@dataclass(slots=True)
class UnitFiller:
    """Works on units in turn. The models are loaded when the first unit needs them, and stay.

    Three things happen at once: batch n goes through the models, batch n + 1 is decoded and preprocessed, and
    batch n - 1 is checked and written; across the borders of units, too. Memory holds these three batches,
    however many there are.
    """

    target: Target
    frozen: FrozenModels
    decoder: VideoDecoder
    batch_size: int
    rows: RowLimit
    ahead: ThreadPoolExecutor
    """One thread, as long-lived as the decoder: the decoder's process ends with the thread that began it."""
    behind: ThreadPoolExecutor
    """One thread, which writes."""
    _loaded: set[Kind] = field(default_factory=set)

    @classmethod
    @contextmanager
    def ready(cls, job: Job) -> Iterator[UnitFiller]:
        """A filler with a decoder and models of its own. Raises StageError where they are other ones here."""
        execution = job.execution
        thinker = job.target.sets["thinker"]
        models = replace(job.models, layers=",".join(map(str, thinker.layers)))  # the set may hold more
        frozen = FrozenModels.find(
            models, device=execution.device, vllm=job.vllm, batch_size=execution.batch_size
        )
        _refuse_other_models(frozen, job)
        device = frozen.thinker.device.type
        batch_size = execution.clips_per_batch(device)
        if device == "cpu":
            keep_freed_memory()
        with (
            decoder_beside(device, timeout_s=execution.decode_timeout) as decoder,
            thread_beside(device, name="decode") as ahead,
            thread_beside(device, name="write") as behind,
            frozen,
        ):
            yield cls(
                target=job.target,
                frozen=frozen,
                decoder=decoder,
                batch_size=batch_size,
                rows=RowLimit.of_batch(batch_size),
                ahead=ahead,
                behind=behind,
            )

    def fill(
        self,
        units: Sequence[Unit],
        videos: Mapping[str, PlannedVideo],
        *,
        on_batch: OnBatch,
        given_up: Mapping[str, Failure] | None = None,
        one_by_one: bool = False,
    ) -> bool:
        """Decide every clip of the units and seal their shards. False where it was asked to stop before.

        Clips in `given_up` are recorded with their failure and not worked on. `one_by_one` commits each
        clip by itself before the next one is touched, with the same features up to rounding: forwards have
        as many rows, but the clip another place among them. Raises CacheError where the shards cannot be
        written.
        """
        hands: list[_UnitInHand] = []
        decoding = ClipDecoding(self.decoder, videos)
        first = next((clip for unit in units for clip in unit.clips), None)
        if first and not self._loaded:
            self.ahead.submit(decoding.open, first)  # the models are loaded meanwhile
        batches = self._batches(units, hands, given_up or {}, 1 if one_by_one else self.batch_size)
        coming: deque[tuple[_Batch, Future[Inputs]]] = deque()
        writing: Future[BatchDone] | None = None
        try:
            while True:
                for batch in islice(batches, (1 if one_by_one else 2) - len(coming)):
                    coming.append((batch, self.ahead.submit(self._prepare, batch, decoding)))
                if not coming:
                    if writing is not None:
                        on_batch(writing.result())
                    return True
                batch, prepared = coming[0]
                inputs = prepared.result()
                coming.popleft()
                outcomes = run_batch(inputs, self.frozen, self.rows)
                goes_on = writing is None or on_batch(writing.result())
                writing = self.behind.submit(batch.commit, outcomes, self.rows.told())
                del prepared, inputs, outcomes  # tens of megabytes a clip, which the next forward needs
                if one_by_one or not goes_on:
                    goes_on = on_batch(writing.result()) and goes_on
                    writing = None
                if not goes_on:
                    return False
        finally:
            being_decoded = [future for _, future in coming if not future.cancel() and not future.done()]
            if being_decoded:
                self.decoder.interrupt()  # nobody needs it any more, and its reader may hang
            wait(being_decoded)
            wait([writing] if writing else [])
            for hand in list(hands):
                hand.close()

    def _prepare(self, batch: _Batch, decoding: ClipDecoding) -> Inputs:
        return prepare_batch(batch.clips, batch.wanted, self.frozen, decoding)

    def _batches(
        self, units: Sequence[Unit], hands: list[_UnitInHand], given_up: Mapping[str, Failure], size: int
    ) -> Iterator[_Batch]:
        """The batches that are not decided yet, and the last one of each unit, which seals it.

        They are cut at the same places whatever has been decided: an interruption moves no border.
        """
        for unit in units:
            self._load(unit)
            hand = _UnitInHand(self.target, unit, hands)
            parts = [unit.clips[start : start + size] for start in range(0, len(unit.clips), size)] or [()]
            for number, clips in enumerate(parts, start=1):
                batch = _Batch(clips, hand, hand.missing(clips), given_up, is_last=number == len(parts))
                if batch.is_last or any(batch.missing.values()):
                    yield batch

    def _load(self, unit: Unit) -> None:
        wanted = [kind for kind in unit.shards if kind not in self._loaded]
        self.frozen.load(wanted)
        self._loaded.update(wanted)


class _UnitInHand:
    """The open shards of a unit, from its first batch to the last; `hands` lists those that are open."""

    def __init__(self, target: Target, unit: Unit, hands: list[_UnitInHand]) -> None:
        self._hands = hands
        self.shards: dict[Kind, OpenShard] = {}
        hands.append(self)
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
        """Let go of the shards; those that are not sealed are continued by whoever opens them next."""
        for shard in self.shards.values():
            shard.close()
        if self in self._hands:
            self._hands.remove(self)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Clips that are computed and committed together."""

    clips: Sequence[ClipRow]
    hand: _UnitInHand
    missing: Mapping[Kind, frozenset[str]]
    given_up: Mapping[str, Failure]
    is_last: bool

    @property
    def wanted(self) -> Mapping[Kind, frozenset[str]]:
        return {kind: ids - self.given_up.keys() for kind, ids in self.missing.items()}

    def commit(self, outcomes: Mapping[Kind, Outcome], notes: tuple[str, ...]) -> BatchDone:
        """Write what came of the batch, and seal its unit behind the last one."""
        names = {clip.clip_id: clip for clip in self.clips}
        failures: list[Failure] = []
        for kind, shard in self.hand.shards.items():
            if self.missing[kind]:
                lost = [
                    self.given_up[clip_id] for clip_id in sorted(self.missing[kind] & self.given_up.keys())
                ]
                failed = [*outcomes[kind].failures, *lost]
                refused = shard.append(outcomes[kind].features, failed)
                failures += [*failed, *(with_video(failure, names[failure.clip_id]) for failure in refused)]
        if self.is_last:
            self.hand.seal()
        return BatchDone(len(frozenset().union(*self.missing.values())), tuple(failures), notes)


def _refuse_other_models(frozen: FrozenModels, job: Job) -> None:
    """Raise StageError where this process would make other features: other weights, other versions."""
    storing = Storing(job.execution.shard_mb, job.execution.codec, job.models.fp8)
    for item in frozen.sets(job.clips, storing):
        wanted = job.target.sets[item.kind]
        if item.name != wanted.name:
            differing = [name for name in item.origin if item.origin[name] != wanted.origin.get(name)]
            raise StageError(
                f"the {item.kind} of this process is not the one that the run was planned with "
                f"({', '.join(differing)} differ): install the same versions and models on all machines"
            )
