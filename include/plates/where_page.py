"""The page on which people find archived files: one form, and what the index says.

Invariant: everything on it is escaped, and bounded in length; it reads the index and changes nothing.
"""

from __future__ import annotations

from pathlib import Path

import jinja2

from include.plates.file_index import FileIndex
from include.plates.where import answer, places_of

ROWS = 50
MOST_PAGES = 200
MOST_CHARACTERS = 1024  # of a key of S3


def page(index: FileIndex, name: str, number: int, *, now: float) -> str:
    """The answer to one name; `number` counts pages from 1. Raises ValueError for a name or page beyond the bounds."""
    if len(name) > MOST_CHARACTERS or not 1 <= number <= MOST_PAGES:
        raise ValueError(
            f"a name has at most {MOST_CHARACTERS} characters, and an answer {MOST_PAGES} pages: say more of the name"
        )
    places = places_of(index)
    found = answer(index, name, places, now=now, most=ROWS, offset=(number - 1) * ROWS)
    broken = any(place.broken for place in places)
    template = _ENVIRONMENT.get_template("where.html.j2")
    return template.render(name=name, answer=found, places=places, broken=broken, number=number, now=now)


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
