"""An end for every HTTP exchange of the SDK, which bounds each silence and not the whole: an answer may come byte by byte.

Invariant: whoever asks gets an answer or an error in time. What is given up goes on in a thread that nobody waits for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from globus_sdk.transport import RequestsTransport

T = TypeVar("T")


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises. Raises requests' ReadTimeout when the time is over."""
    import requests

    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="Globus", daemon=True).start()
    try:
        return done.result(timeout=seconds)
    except TimeoutError:
        if done.done():  # its own
            raise
        raise requests.ReadTimeout(f"no whole answer in {seconds:.0f} s") from None


def bounded_transport(timeout_seconds: float) -> RequestsTransport:
    """A transport of the SDK whose exchanges end after twice the time that a silence may last."""
    import requests
    from globus_sdk.transport import RequestsTransport

    class Bounded(requests.Session):
        def send(self, request: Any, **kwargs: Any) -> Any:
            return within(2 * timeout_seconds, lambda: super(Bounded, self).send(request, **kwargs))

    transport = RequestsTransport(http_timeout=timeout_seconds)
    transport.session.close()
    transport.session = Bounded()
    return transport
