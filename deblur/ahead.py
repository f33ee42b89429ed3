"""Reading ahead: threads work on a few items before they are asked for, so that a store's latency hides."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def results(
    threads: Executor, work: Callable[[Item], Result], items: Iterable[Item], most: int
) -> Generator[Result, None, None]:
    """Yield `work` of each item, in order.

    Unlike `Executor.map` it asks for no more than so many beyond the one that is waited for: all results, or
    all futures, may be more than the memory.
    """
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(threads.submit(work, item))
            if len(pending) > most:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # else who leaves, by Ctrl-C or since the store has gone, waits for all of them
        for future in pending:
            future.cancel()
