"""Filling the shards of a unit: batch after batch goes through the models, each committed as a whole.

Runs in the process that holds the cache, or in any number of others, on any machine that sees the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from thinkjepa.cache import ClipRow, Failure, FeatureSet, Kind, OpenShard
from thinkjepa.stages.data.catalog import PlannedFolder
from thinkjepa.stages.data.clips import ClipSettings
from thinkjepa.stages.data.decode_process import VideoDecoder
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.batches import ClipDecoding, run_batch, with_video
from thinkjepa.stages.extract.feature_sets import Storing
from thinkjepa.stages.extract.frozen_models import FrozenModels
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings
from thinkjepa.stages.extract.units import Unit
from thinkjepa.stages.extract.vllm_settings import VllmSettings


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
    """Works on one unit at a time. The models are loaded when the first unit needs them, and stay."""

    target: Target
    frozen: FrozenModels
    decoder: VideoDecoder
    batch_size: int
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
        with VideoDecoder(timeout_s=execution.decode_timeout) as decoder, frozen:
            yield cls(
                target=job.target,
                frozen=frozen,
                decoder=decoder,
                batch_size=execution.clips_per_batch(frozen.thinker.device.type),
            )

    def fill(
        self,
        unit: Unit,
        folder: PlannedFolder,
        *,
        on_batch: OnBatch,
        given_up: Mapping[str, Failure] | None = None,
        one_by_one: bool = False,
    ) -> bool:
        """Decide every clip of the unit and seal its shards. False where it was asked to stop before.

        Clips in `given_up` are recorded with their failure and not worked on. `one_by_one` commits each
        clip by itself, with the same features: forwards have the same number of rows. Raises CacheError
        where the shards cannot be written.
        """
        self._load(unit)
        decoding = ClipDecoding(self.decoder, folder)
        try:
            with ExitStack() as stack:
                shards = {kind: stack.enter_context(self._opened(kind, unit)) for kind in unit.shards}
                for batch in self._batches(unit, one_by_one=one_by_one):
                    missing = {kind: _undecided(shard, batch) for kind, shard in shards.items()}
                    if any(missing.values()):
                        done = self._extract(batch, missing, shards, decoding, given_up or {})
                        if not on_batch(done):
                            raise _StopAsked
        except _StopAsked:
            return False
        return True

    def _load(self, unit: Unit) -> None:
        wanted = [kind for kind in unit.shards if kind not in self._loaded]
        self.frozen.load(wanted)
        self._loaded.update(wanted)

    def _opened(self, kind: Kind, unit: Unit) -> OpenShard:
        target = self.target
        return OpenShard(target.root, target.sets[kind], unit.shards[kind], token=target.token)

    def _batches(self, unit: Unit, *, one_by_one: bool) -> list[Sequence[ClipRow]]:
        """Cut at the same places whatever has been decided: an interruption moves no border."""
        size = 1 if one_by_one else self.batch_size
        return [unit.clips[start : start + size] for start in range(0, len(unit.clips), size)]

    def _extract(
        self,
        batch: Sequence[ClipRow],
        missing: Mapping[Kind, frozenset[str]],
        shards: Mapping[Kind, OpenShard],
        decoding: ClipDecoding,
        given_up: Mapping[str, Failure],
    ) -> BatchDone:
        """Run a batch through the models and commit it."""
        names = {clip.clip_id: clip for clip in batch}
        wanted = {kind: ids - given_up.keys() for kind, ids in missing.items()}
        outcomes = run_batch(batch, wanted, self.frozen, decoding, batch_size=self.batch_size)
        failures: list[Failure] = []
        for kind, shard in shards.items():
            lost = [given_up[clip_id] for clip_id in sorted(missing[kind] & given_up.keys())]
            failed = [*outcomes[kind].failures, *lost]
            refused = shard.append(outcomes[kind].features, failed)
            failures += [*failed, *(with_video(failure, names[failure.clip_id]) for failure in refused)]
        return BatchDone(len(frozenset().union(*missing.values())), tuple(failures))


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


class _StopAsked(Exception):  # noqa: N818 - no error
    """Leaves the shards of a unit open."""


def _undecided(shard: OpenShard, batch: Sequence[ClipRow]) -> frozenset[str]:
    """Clips of a batch that the shard has neither features nor a failure of."""
    if shard.is_sealed:
        return frozenset()
    return frozenset(clip.clip_id for clip in batch) - shard.decided
