"""Units on dask workers: on this machine, one for each copy of the models, or on an existing cluster.

A task is a unit, or a few where there are many, so that decoding runs ahead across their borders. A lost
worker's commits stay, and another worker continues its task. A clip over which workers die again and again
is recorded as failed, with the cause.
"""

from __future__ import annotations

import logging
import queue
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import dask
import torch
from distributed import Client, Future, KilledWorker, Nanny, Scheduler, Security, SpecCluster

from thinkjepa.cache import ClipRow, Failure, ThinkJepaError, WriteSession
from thinkjepa.stages.data.plan import PlannedVideo
from thinkjepa.stages.device import usable_cores
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.settings import ExecutionSettings
from thinkjepa.stages.extract.work.units import BatchDone, Job, OnBatch, Unit, pending_clips
from thinkjepa.stages.extract.work.worker import Task, fill_on_worker, topic_of
from thinkjepa.stages.signals import Stopping

POLL_S = 0.05
CONNECT_S = 30
START_S = 300
"""Until the workers have started: a busy machine imports torch and transformers for a minute."""

TASKS_AHEAD = 2
"""Tasks that a worker runs or has waiting: few, so that a stop need not take many back."""

MAX_UNITS = 8
"""Units of a task: enough for a pipeline, few enough that the last tasks end together."""

TASKS_PER_WORKER = 4
"""Tasks for each worker at least, where there are enough units: the last ones are spread evenly."""

FRUITLESS_LOSSES = 6
"""Workers lost one after another without a processed clip: then it is not the clips that kill them."""

SETTINGS = {
    "distributed.scheduler.allowed-failures": 0,  # the cause is found out here
    "distributed.scheduler.worker-ttl": None,  # a forward may hold a worker for minutes
    "distributed.comm.timeouts.connect": f"{CONNECT_S}s",
    "distributed.nanny.pre-spawn-environ.DASK_LOGGING__DISTRIBUTED": "critical",
    # dask has workers give memory back at once: every large tensor is paged in anew, a third of a CPU's time.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
}


LOOPBACK = "127.0.0.1"

LOCAL: dict[str, Any] = {
    "host": LOOPBACK,
    "protocol": "tls://",
    "dashboard": False,
    "dashboard_address": f"{LOOPBACK}:0",
}
"""Scheduler and workers on this machine. dask runs any code that is sent to it: other users must not send."""

NO_PAGES: dict[str, Any] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
"""dask's status pages listen without a certificate, even where they show nothing. Now they answer nothing."""


def run_on_cluster(
    units: Sequence[Unit],
    videos: Mapping[str, PlannedVideo],
    session: WriteSession,
    job: Job,
    on_batch: OnBatch,
    stopping: Stopping,
) -> None:
    """Fill the shards of all units on workers, or until `stopping` is asked and batches in flight are done.

    Raises StageError with the cause where no worker can do the work.
    """
    threads = job.execution.threads
    with dask.config.set(SETTINGS), connected(job.execution) as client:
        run = _ClusterRun(client, session, job, on_batch, threads or _share_of_cores(job.execution))
        client.subscribe_topic(topic_of(job), run.receive)
        run.work(units, videos, stopping)
        client.unsubscribe_topic(topic_of(job))


def _share_of_cores(execution: ExecutionSettings) -> int:
    """Threads of a local worker, or 0, torch's own choice, on a cluster."""
    return 0 if execution.scheduler else max(1, usable_cores() // execution.workers)


def _tasks(units: Sequence[Unit], videos: Mapping[str, PlannedVideo], *, workers: int) -> list[Task]:
    size = max(1, min(MAX_UNITS, len(units) // (TASKS_PER_WORKER * workers)))
    groups = [tuple(units[start : start + size]) for start in range(0, len(units), size)]
    return [Task(group, _videos_of(group, videos)) for group in groups]


def _videos_of(units: Sequence[Unit], videos: Mapping[str, PlannedVideo]) -> dict[str, PlannedVideo]:
    digests = {clip.video_digest for unit in units for clip in unit.clips}
    return {digest: videos[digest].for_worker() for digest in digests}


@contextmanager
def connected(execution: ExecutionSettings) -> Iterator[Client]:
    """A client of the named scheduler, or of new workers on this machine that end with this process."""
    if execution.scheduler:
        try:
            client = Client(execution.scheduler, timeout=CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise StageError(
                f"no dask scheduler answers at --scheduler {execution.scheduler!r} ({error}): start one with "
                "`dask scheduler`, workers with `dask worker ADDRESS --nthreads 1`"
            ) from error
        with client:
            yield client
        return
    # The key of a run is in the memory of its processes only, and another run has another one.
    security = Security.temporary()
    with (
        _quiet_logs(),
        _own_scratch(),
        dask.config.set(NO_PAGES),
        SpecCluster(
            scheduler={"cls": Scheduler, "options": {**LOCAL, "port": 0, "security": security}},
            workers={number: _worker(number, security) for number in range(execution.workers)},
            security=security,
        ) as cluster,
        Client(cluster, timeout=CONNECT_S, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def _own_scratch() -> Iterator[None]:
    """A new scratch folder for dask, which imports from there: others can create one of its usual name."""
    before = dask.config.get("temporary-directory", None)
    with TemporaryDirectory(prefix="thinkjepa-dask-", dir=before) as folder:
        try:
            with dask.config.set({"temporary-directory": folder}):
                yield
        finally:
            sys.path[:] = [entry for entry in sys.path if not entry.startswith(folder)]


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Keep dask's log lines off the terminal. Nannies still record them, and we report what matters."""
    handlers = logging.getLogger("distributed").handlers
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


def _worker(number: int, security: Security) -> dict[str, Any]:
    """One worker process of this machine: one unit at a time, on a GPU of its own if there is one."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    environment = {"CUDA_VISIBLE_DEVICES": str(number % gpus)} if gpus else {}
    own = {"nthreads": 1, "memory_limit": 0, "env": environment}
    return {"cls": Nanny, "options": {**LOCAL, **own, "security": security}}


class _ClusterRun:
    """The tasks of a run, those that run, and the workers that were lost over them."""

    def __init__(
        self,
        client: Client,
        session: WriteSession,
        job: Job,
        on_batch: OnBatch,
        threads: int,
    ) -> None:
        self.client, self.session, self.job, self.threads = client, session, job, threads
        self._on_batch = on_batch
        self._events: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._running: dict[Future, Task] = {}
        self._losses: Counter[str] = Counter()
        self._fruitless: set[str] = set()
        """Workers lost since a clip was last processed."""
        self._begun: dict[str, int] = {}
        """Process that a task runs in, by its key. Tasks that wait for another one have none."""
        self._submitted = 0

    def receive(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """Queue an event of a worker. Runs in the client's own thread."""
        self._events.put(event[1])

    def work(self, units: Sequence[Unit], videos: Mapping[str, PlannedVideo], stopping: Stopping) -> None:
        """Submit tasks until all are done or the run is asked to stop."""
        self._await_workers(stopping)
        waiting = deque(_tasks(units, videos, workers=max(1, self._num_workers())))
        while (waiting and not stopping.asked) or self._running:
            while waiting and not stopping.asked and len(self._running) < self._room():
                self._submit(waiting.popleft())
            if stopping.asked:
                self._stop()
            waiting.extend(self._finished())
            self._drain()
        self._drain()

    def _await_workers(self, stopping: Stopping) -> None:
        deadline = time.monotonic() + START_S
        while not stopping.asked and not self._num_workers():
            if time.monotonic() > deadline:
                raise StageError(
                    f"no dask worker came within {START_S} s: start some (docs/cluster.md), or see their logs"
                )
            time.sleep(POLL_S)

    def _num_workers(self) -> int:
        return len(self.client.scheduler_info(n_workers=-1).get("workers", {}))

    def _room(self) -> int:
        return max(1, TASKS_AHEAD * self._num_workers())

    def _submit(self, task: Task) -> None:
        self._submitted += 1
        key = f"thinkjepa-units-{self.job.target.token}-{self._submitted}"
        future = self.client.submit(fill_on_worker, self.job, task, self.threads, key=key, pure=False)
        self._running[future] = task

    def _stop(self) -> None:
        """Cancel the tasks that no worker has begun, and let the others end after their batch."""
        self.session.ask_writers_to_stop()
        processing = {key for keys in self.client.processing().values() for key in keys}
        for future in [item for item in self._running if item.key not in processing]:
            future.cancel()
            del self._running[future]

    def _finished(self) -> list[Task]:
        """Tasks to submit again, after waiting a moment for any that end."""
        if self.client.status == "closed":  # after it tried for CONNECT_S to connect again
            raise StageError(
                "the dask scheduler was lost: what is done is kept; the same command, with a scheduler that "
                "runs, goes on from there"
            )
        done = [future for future in self._running if future.done()]
        if not done:
            time.sleep(POLL_S)
        again = []
        for future in done:
            task = self._running.pop(future)
            if future.status == "error":
                again += self._lost(task, future.key, future.exception())
            elif future.status != "finished":
                again.append(task)
        return again

    def _lost(self, task: Task, key: str, error: BaseException | None) -> list[Task]:
        """The tasks to continue with after a worker was lost. Raises StageError for other errors."""
        if not isinstance(error, KilledWorker):
            assert error is not None
            if isinstance(error, ThinkJepaError):
                raise error
            raise StageError(f"a worker failed: {type(error).__name__}: {error}") from error
        self._drain()
        address = error.last_worker.address
        self._fruitless.add(address)
        cause = self._cause(address, self._begun.get(key, 0))
        if len(self._fruitless) >= FRUITLESS_LOSSES:
            raise StageError(
                f"{FRUITLESS_LOSSES} workers were lost one after another before any clip was done; the last "
                f"one: {cause}"
            )
        if key not in self._begun:  # it waited for the one that killed the worker
            return [task]
        # Only the current unit goes clip by clip, which costs a whole forward each. The others may have clips
        # left, or a shard that is complete and not sealed.
        current = next((index for index, unit in enumerate(task.units) if self._left(unit)), 0)
        suspect, others = task.units[current], task.units[:current] + task.units[current + 1 :]
        skipped = self._skipped(task, self._left(suspect), cause) if task.one_by_one else task.skipped
        again = [Task((suspect,), task.videos, skipped, one_by_one=True)]
        return again + ([Task(others, task.videos)] if others else [])

    def _left(self, unit: Unit) -> list[ClipRow]:
        """Pending clips of a unit. The first one was computed when the worker died, if they go one by one."""
        left = pending_clips(self.session, self.job.target.sets, unit)
        return [clip for clip in unit.clips if clip.clip_id in left]

    def _skipped(self, task: Task, left: Sequence[ClipRow], cause: str) -> Mapping[str, Failure]:
        """Clips that a task records as failed, after its worker was lost over the first clip left."""
        for clip in left[:1]:
            self._losses[clip.clip_id] += 1
            if self._losses[clip.clip_id] >= self.job.execution.clip_retries:
                failure = Failure(clip.video, "worker", cause, clip.clip_id, clip.video_digest)
                return {**task.skipped, clip.clip_id: failure}
        return task.skipped

    def _cause(self, address: str, pid: int) -> str:
        """The cause of a worker's end, by the log of its nanny."""
        lines = [text for log in self.client.get_worker_logs(nanny=True).values() for _, text in log]
        for line in reversed(lines):
            found = re.search(rf"process {pid} (was killed by signal \d+|exited with status -?\d+)", line)
            if found:
                return f"the worker process {found[1]} while it worked on this clip"
        return f"the worker {address} was lost while it worked on this clip: killed, or out of memory"

    def _drain(self) -> None:
        """Report the events of workers so far."""
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return
            if "key" in event:
                self._begun[event["key"]] = event["pid"]
                continue
            self._fruitless.clear()
            failures = tuple(Failure(*item) for item in event["failures"])
            self._on_batch(BatchDone(event["clips"], failures, tuple(event["notes"])))
