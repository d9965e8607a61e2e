"""What a process remembers outside of its objects: variables of its modules and classes. A process that dies takes it along.

Processes of a trial share one Python, so what a dead one has put there must be taken away before its heir begins.

Invariant: after `forget` these variables are bound to what they were, and lists, dicts and sets among them hold what they held.
What functools caches is left: it must follow from its arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

CONTAINERS = (dict, list, set)


class Memory:
    """Taken when a process begins. `worker` is its class; the code of ours is `include`, and where the worker is defined."""

    def __init__(self, worker: type) -> None:
        self._bound = {place: _variables(place) for place in _places(worker)}
        values = [value for variables in self._bound.values() for value in variables.values()]
        self._held = [(value, value.copy()) for value in values if type(value) in CONTAINERS]

    def forget(self) -> None:
        for place, before in self._bound.items():
            now = _variables(place)
            for name in now.keys() - before.keys():
                delattr(place, name)
            for name, value in before.items():
                if name not in now or now[name] is not value:
                    setattr(place, name, value)
        for container, before in self._held:
            if container != before:
                container.clear()
                container.extend(before) if isinstance(container, list) else container.update(before)


def _places(worker: type) -> Iterator[ModuleType | type]:
    homes = {cls.__module__ for cls in worker.__mro__[:-1]}
    modules = {n: m for n, m in list(sys.modules.items()) if m and (n in homes or n.startswith("include."))}
    seen: dict[int, type] = {id(cls): cls for cls in worker.__mro__[:-1]}
    for name, module in modules.items():
        yield module
        own = [cls for cls in vars(module).values() if isinstance(cls, type) and cls.__module__ == name]
        seen.update((id(cls), cls) for cls in own)
    yield from seen.values()


def _variables(place: ModuleType | type) -> dict[str, Any]:
    return {name: value for name, value in vars(place).items() if not name.startswith("__")}
