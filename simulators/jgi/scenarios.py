"""Seeded worlds: `sop` has three small projects with real bytes, `terabytes` three whose sum takes several days of windows.

Invariant: the projects of a scenario have the same ids, names and bytes for the same seed.
"""

from __future__ import annotations

from simulators.jgi.catalog import Catalog
from simulators.jgi.generate import add_published, add_random

SCENARIOS = ("sop", "terabytes")
GROW, BIOSCALES, BLUE = 503568, 502924, 505022


def seed_scenario(catalog: Catalog, name: str) -> Catalog:
    """Add the projects of a scenario. Raises ValueError for an unknown name."""
    if name == "sop":
        add_published(catalog, GROW, "grow", biosamples=2, scale=1e-6, shared=2)
        add_published(catalog, BIOSCALES, "bioscales", biosamples=1, scale=1e-6, on_disk_rate=0.1)
        add_random(catalog, BLUE, "blue_hole", total_bytes=400_000, biosamples=3, files_each=20, odd_names=True)
    elif name == "terabytes":
        for number, project in ((GROW, "grow"), (BIOSCALES, "bioscales"), (BLUE, "blue_hole")):
            add_random(catalog, number, project, total_bytes=2 * 10**13, biosamples=100, shared=2, on_disk_rate=0.02)
    else:
        raise ValueError(f"unknown scenario {name!r}; known: {', '.join(SCENARIOS)}")
    return catalog
