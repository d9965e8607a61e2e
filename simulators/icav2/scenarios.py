"""Seeded worlds. `sop` holds the source files of both inputs of the copy-batch procedure and the empty projects they go to.

Invariant: the manifests in `simulators/data/icav2` are the inputs as published; sizes and ETags are made up here,
plausibly.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from simulators.icav2.simulator import IcaWorld

_DATA = Path(__file__).resolve().parent.parent / "data" / "icav2"
_GIGABYTE = 10**9
SCENARIOS = ("sop",)


def _manifests() -> list[dict[str, list[str]]]:
    plain = json.loads((_DATA / "gen1_input_manifest.json").read_text(encoding="utf-8"))["manifest"]
    decoded = json.loads((_DATA / "gen1_input_manifest_b64gz.decoded.json").read_text(encoding="utf-8"))
    return [plain, decoded]


def split_uri(uri: str) -> tuple[str, str]:
    """`icav2://<project>/a b/c` to project and path; nothing is decoded (docs/protocols/icav2.md 3.9)."""
    project_id, _, path = uri.removeprefix("icav2://").partition("/")
    return project_id, f"/{path}"


def _plausible_size(path: str, seed: int) -> int:
    """Bytes: reads of tens of gigabytes, reports and logs of kilobytes; the same for the same path and seed."""
    source = random.Random(f"{seed}|{path}")
    if path.endswith(".fastq.gz"):
        return int(source.uniform(20, 45) * _GIGABYTE)
    return source.randint(400, 90_000)


def seed_scenario(sim: IcaWorld, name: str) -> dict[str, Any]:
    """Seed the scenario `name` and say what is there: `projects` (id to label) and `manifests`.

    Raises ValueError for an unknown name.
    """
    if name not in SCENARIOS:
        raise ValueError(f"unknown scenario {name!r}; known: {', '.join(SCENARIOS)}")
    manifests = _manifests()
    projects: dict[str, str] = {}
    for manifest in manifests:
        for source, destinations in manifest.items():
            projects.setdefault(split_uri(source)[0], "sequencing runs")
            for destination in destinations:
                projects.setdefault(split_uri(destination)[0], "analysis cache")
    for project_id, label in projects.items():
        sim.seed_project(project_id, label)
    for manifest in manifests:
        for source in manifest:
            project_id, path = split_uri(source)
            if sim.tree.at(project_id, path) is None:
                sim.seed_file(project_id, path, _plausible_size(path, sim.settings.seed))
    return {"projects": projects, "manifests": manifests}
