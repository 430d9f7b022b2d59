"""Batches: which clips make up which, and reading ahead.

Batches are pure functions of ids, seed and epoch, so that a run can be repeated. A thread reads them ahead of
their use, into buffers that are used again and again: a fresh buffer of 270 MB costs as much in page faults
as its copy from the cache. Order and values are those of reading each batch when it is needed.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from typing import TypeVar

from thinkjepa.cache import BatchBuffers
from thinkjepa.stages.train.randomness import epoch_order


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Clips of a global batch that go through the model at once, on one process.

    Weights are 1, or 0 for a clip that only fills an empty micro-batch.
    """

    clip_ids: tuple[str, ...]
    weights: tuple[float, ...]


def training_batches(
    clip_ids: Sequence[str], *, batch_size: int, seed: int, epoch: int
) -> list[tuple[str, ...]]:
    """An epoch's global batches: every clip once, in the order of (seed, epoch); the last may be smaller."""
    shuffled = [clip_ids[index] for index in epoch_order(len(clip_ids), seed=seed, epoch=epoch)]
    return batches_in_order(shuffled, batch_size=batch_size)


def batches_in_order(clip_ids: Sequence[str], *, batch_size: int) -> list[tuple[str, ...]]:
    """Consecutive batches, every clip once."""
    return [tuple(clip_ids[start : start + batch_size]) for start in range(0, len(clip_ids), batch_size)]


def micro_batches(
    batch: tuple[str, ...], *, process: int, num_processes: int, most_clips: int
) -> list[MicroBatch]:
    """The parts of `batch`, of at most `most_clips` each, that `process` works on one after another.

    Together the processes have every clip once. All have the same number of parts, because they exchange
    gradients in step: a part that would be empty runs the batch's first clip at weight 0.
    """
    own = batch[process::num_processes]
    largest = -(-len(batch) // num_processes)
    parts = [own[start : start + most_clips] for start in range(0, largest, most_clips)]
    return [MicroBatch(part, (1.0,) * len(part)) if part else MicroBatch(batch[:1], (0.0,)) for part in parts]


Request = TypeVar("Request")

Result = TypeVar("Result")


def new_buffers() -> tuple[BatchBuffers, ...]:
    """For a batch with the consumer, one that waits for it, and one in the making."""
    return tuple(BatchBuffers() for _ in range(3))


def prefetched(
    requests: Iterable[Request],
    load: Callable[[Request, BatchBuffers], Result],
    *,
    buffers: Sequence[BatchBuffers],
) -> Generator[Result]:
    """Yields `load(request, buffers)` of every request, in order. Its errors are raised here, in their turn.

    `buffers`, 2 or more, are used in turn: as many batches, less one, are read ahead. Those of an earlier
    call may be given again. A result in buffers is valid until the next one is asked for. Closing the
    iterator early waits for the running load and drops the others.
    """
    turns = cycle(buffers)
    source = iter(requests)
    loading: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as reader:

        def submit_next() -> None:
            for request in source:
                loading.append(reader.submit(load, request, next(turns)))
                return

        for _ in range(len(buffers) - 1):  # one is the consumer's
            submit_next()
        try:
            while loading:
                result = loading.popleft().result()
                submit_next()
                yield result
        finally:
            reader.shutdown(cancel_futures=True)
