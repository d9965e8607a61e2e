"""Helpers for doing many things at once with a bound, in a known order.

On the first error `map_concurrently`, `gather_or_cancel` and `prefetch` cancel what is still running; `map_by_key` lets it
come to its end, since its calls may change a remote and an answer in flight must not be lost. Each then raises that error.

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
    concurrency: int,
    note: Callable[[int], None] = lambda _: None,
) -> list[R]:
    """`work` on every item, at most `concurrency` at a time; results in the items' order. The first error is raised."""
    results: dict[int, R] = {}
    queue = iter(enumerate(items))

    async def worker() -> None:
        for index, item in queue:
            results[index] = await work(item)
            note(len(results))

    await gather_or_cancel(worker() for _ in range(min(concurrency, len(items))))
    return [results[index] for index in range(len(items))]


async def gather_or_cancel(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Waits for all; the first error cancels the rest, waits for them, and is raised."""
    tasks = [asyncio.ensure_future(one) for one in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        await stop(tasks)


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


async def map_by_key(keys: Iterable[K], ask: Callable[[K], Awaitable[V]], at_once: int = AT_ONCE) -> dict[K, V]:
    """Asks for every key, a bounded number at once, and waits for all of them also when one fails."""
    limit = asyncio.Semaphore(at_once)
    answers: dict[K, V] = {}
    errors: list[Exception] = []

    async def bounded(key: K) -> None:
        async with limit:
            try:
                answers[key] = await ask(key)
            except Exception as error:
                errors.append(error)

    unique = list(dict.fromkeys(keys))
    await asyncio.gather(*(bounded(key) for key in unique))
    if errors:
        raise errors[0]
    return {key: answers[key] for key in unique}
