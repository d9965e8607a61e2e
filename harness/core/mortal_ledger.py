"""A ledger as one process sees it, which a test can end, stop or look at wherever the process reads or writes.

Invariant: once `dead`, its process reads and writes nothing any more, as after SIGKILL; what it had asked of a remote goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from include.core.ledger import Ledger


class Killed(BaseException):
    """What a process meets that was killed: it does nothing more."""


class MortalLedger(Ledger):
    """`before_access` is called before each read and write; what it does happens while this process stands still."""

    dead = False
    before_access: Callable[[], None] | None = None

    @contextmanager
    def reading(self) -> Iterator[Any]:
        self._reached()
        with super().reading() as conn:
            yield conn

    @contextmanager
    def _write(self, *args: Any, **more: Any) -> Iterator[Any]:
        self._reached()
        with super()._write(*args, **more) as tx:
            yield tx

    def kill(self) -> None:
        """Ends its process here."""
        self.dead = True
        raise Killed

    def _reached(self) -> None:
        if not self.dead and self.before_access is not None:
            self.before_access()
        if self.dead:
            raise Killed
