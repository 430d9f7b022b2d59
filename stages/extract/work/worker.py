"""The worker side of an extraction on dask: the models stay loaded in the process, unit after unit."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
from distributed import get_worker

from thinkjepa.cache import Failure, ThinkJepaError
from thinkjepa.cache.disk.lock import writers_should_stop
from thinkjepa.stages.data.plan import PlannedVideo
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.work.units import BatchDone, Job, Unit, UnitFiller


@dataclass(frozen=True, slots=True)
class Task:
    """Units for one worker, with the plan of their videos."""

    units: tuple[Unit, ...]
    videos: Mapping[str, PlannedVideo]
    """By content digest."""
    skipped: Mapping[str, Failure] = field(default_factory=dict)
    one_by_one: bool = False


class _Replica:
    """The models and the decoder of a worker process, kept from unit to unit of one job."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._token = ""
        self._context: Any = None
        self._filler: UnitFiller | None = None

    def filler(self, job: Job, threads: int) -> UnitFiller:
        """The filler of this job. That of an earlier job is closed."""
        if self._filler is None or self._token != job.target.token:
            self.close()
            if threads:
                torch.set_num_threads(threads)
            self._context = UnitFiller.ready(job)
            self._filler, self._token = self._context.__enter__(), job.target.token
        return self._filler

    def close(self) -> None:
        """Close the filler, where there is one."""
        context, self._context, self._filler = self._context, None, None
        if context is not None:
            context.__exit__(None, None, None)


_replica = _Replica()


def fill_on_worker(job: Job, task: Task, threads: int) -> bool:
    """Fill the units' shards in this worker process. False where the run was stopped before."""
    worker, topic = get_worker(), topic_of(job)

    def on_batch(done: BatchDone) -> bool:
        failures = [astuple(failure) for failure in done.failures]
        worker.log_event(topic, {"clips": done.clips, "failures": failures, "notes": list(done.notes)})
        return not writers_should_stop(job.target.root, job.target.token)

    with _replica.lock:  # a worker with several threads has one copy of the models
        begun = {"pid": os.getpid(), "key": worker.get_current_task()}
        worker.log_event(topic, begun)
        try:
            filler = _replica.filler(job, threads)
            return filler.fill(
                task.units, task.videos, on_batch=on_batch, skipped=task.skipped, one_by_one=task.one_by_one
            )
        except ThinkJepaError as error:
            raise StageError(f"worker {worker.address}: {error}") from None


def topic_of(job: Job) -> str:
    """The dask topic on which the workers of a job report."""
    return f"thinkjepa-{job.target.token}"
