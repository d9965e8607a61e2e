"""Reading requests: query parameters and bodies, refused in the API's manner when they are wrong.

Invariant: empty query parameters count as absent, as generated clients send them.
"""

from __future__ import annotations

from typing import Any

from simulators.common import Answer, Call, ProblemError
from simulators.icav2.render import MEDIA_TYPE


def ok(body: Any, status: int = 200, **more: Any) -> Answer:
    """An answer in the API's media type."""
    return Answer(status, body, MEDIA_TYPE, **more)


def choices(call: Call, name: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """The values of a repeatable query parameter. Raises `ProblemError` 400 for one that is not allowed."""
    values = tuple(value for value in call.query.getlist(name) if value)
    wrong = [value for value in values if value not in allowed]
    if wrong:
        raise ProblemError(400, "Bad request", f"{name} may be {', '.join(allowed)}; not {', '.join(wrong)}.")
    return values


def choice(call: Call, name: str, allowed: tuple[str, ...], default: str) -> str:
    """The value of a query parameter, or the default."""
    return (*choices(call, name, allowed)[:1], default)[0]


def checked_object(call: Call, required: dict[str, type], optional: dict[str, type]) -> dict[str, Any]:
    """The body, checked field by field. Raises `ProblemError` 400 that names the first wrong field."""
    body = call.json()
    if not isinstance(body, dict):
        raise ProblemError(400, "Bad request", "The body must be a JSON object.")
    for name, kind in (required | optional).items():
        value = body.get(name)
        if value is None and name in required:
            raise ProblemError(400, "Bad request", f"{name} is required.")
        if value is not None and not isinstance(value, kind):
            raise ProblemError(400, "Bad request", f"{name} has the wrong type.")
    return body
