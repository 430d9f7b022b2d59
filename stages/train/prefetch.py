"""Batches read ahead of their use by a thread, into buffers that are used again and again.

A fresh buffer of 270 MB costs as much in page faults as its copy from the cache; and while a step computes,
the next batch can be copied. Order and values are those of reading each batch when it is needed.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from typing import TypeVar

from thinkjepa.cache import BatchBuffers

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
    """`load(request, buffers)` of every request, in order; what it raises is raised here, in its turn.

    `buffers`, 2 or more, are used in turn: as many batches, less one, are read ahead. Those of an earlier
    call may be given again. A result that lies in buffers is valid until the next one is asked for. Closing
    the iterator early waits for the load that is running and forgets the others.
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
