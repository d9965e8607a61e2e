"""How a person names files of an archive: a key, the end of a key, or a pattern. One rule for `restore` and `where`.

Invariant: what `where` finds by a name, `restore` gives back by the same name.
"""

from __future__ import annotations

import fnmatch


def is_named(key: str, name: str) -> bool:
    """Whether `name` is this key, its end after a slash, or a pattern over the whole key (`*/Images/r01*`)."""
    return key == name or key.endswith("/" + name) or ("*" in name and fnmatch.fnmatchcase(key, name))
