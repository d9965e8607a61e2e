"""Running many things at once, with a bound and in a known order.

On the first error nothing more begins, and what has begun comes to its end, since it may change a remote and an answer in
flight must not be lost; then that error is raised. `prefetch`, which only reads ahead, cancels its reads instead.

Invariant: nothing that was started outlives the call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
K = TypeVar("K")
V = TypeVar("V")
AT_ONCE = 50  # calls to one remote in flight


async def map_concurrently(
    items: Sequence[T],
    work: Callable[[T], Awaitable[R]],
    concurrency: int = AT_ONCE,
    note: Callable[[int], None] = lambda _: None,
) -> list[R]:
    """`work` on every item, at most `concurrency` at a time; results in the items' order. The first error is raised once
    nothing runs any more."""
    results: dict[int, R] = {}
    errors: list[Exception] = []
    queue = iter(enumerate(items))

    async def worker() -> None:
        for index, item in queue:
            if errors:
                return
            try:
                results[index] = await work(item)
            except Exception as error:
                errors.append(error)
                return
            note(len(results))

    workers = [asyncio.create_task(worker()) for _ in range(min(concurrency, len(items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        await stop(workers)  # only where the caller itself is cancelled does one still run
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(items))]


async def map_by_key(keys: Iterable[K], ask: Callable[[K], Awaitable[V]], at_once: int = AT_ONCE) -> dict[K, V]:
    """The same by key, each key once."""
    unique = list(dict.fromkeys(keys))
    return dict(zip(unique, await map_concurrently(unique, ask, at_once), strict=True))


async def stop(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancels what still runs and waits until it has ended. Their errors are dropped."""
    every = list(tasks)
    for task in every:
        task.cancel()
    await asyncio.gather(*every, return_exceptions=True)


async def prefetch(
    jobs: Iterable[tuple[int, Callable[[], Coroutine[Any, Any, R]]]], *, budget: int, count: int
) -> AsyncGenerator[R, None]:
    """Results of (weight, job) in order, with jobs running ahead while their weights fit the budget (one always may)."""
    waiting: deque[tuple[int, asyncio.Task[R]]] = deque()
    source = iter(jobs)
    pending = next(source, None)
    used = 0
    try:
        while pending is not None or waiting:
            while pending is not None and len(waiting) < count and (not waiting or used + pending[0] <= budget):
                weight, job = pending
                waiting.append((weight, asyncio.create_task(job())))
                used += weight
                pending = next(source, None)
            weight, task = waiting[0]
            result = await task
            waiting.popleft()
            used -= weight
            yield result
            del result
    finally:
        await stop(task for _, task in waiting)
