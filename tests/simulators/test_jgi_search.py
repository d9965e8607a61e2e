"""JDP's search and the world behind it: pages, groups, odd records, projects of any size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jgi_rehearsal import PROPOSAL, Jdp

from simulators.jgi import Catalog, add_published, add_random, seed_scenario
from simulators.jgi.generate import ODD_NAMES, TRAPS, published_answer


@pytest.fixture
def rehearse_jdp(tmp_path: Path) -> Iterator[Callable[..., Jdp]]:
    made: list[Jdp] = []

    def start(catalog: Catalog, **settings: Any) -> Jdp:
        made.append(Jdp(tmp_path, catalog, **settings))
        return made[-1]

    yield start
    for each in made:
        each.close()


def rows(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for group in answer["organisms"] for row in group["files"]]


def test_a_search_has_the_shape_of_the_published_answer(rehearse_jdp: Callable[..., Jdp]) -> None:
    catalog = Catalog()
    add_published(catalog, PROPOSAL, "grow", trap_rate=0.0)
    answer = rehearse_jdp(catalog).search(q=1500001, f="project_id", p=1, x=10)
    published = published_answer()
    assert set(answer) <= set(published)
    assert set(answer["organisms"][0]) <= set(published["organisms"][0])
    of_published = {tuple(sorted(row)) for row in published["organisms"][0]["files"]}
    assert {tuple(sorted(row)) for row in rows(answer)} == of_published
    assert (answer["total"], answer["file_total"], answer["next_page"]) == (1, 85, False)
    assert answer["facets"]["file_status"] == {"PURGED": 85}
    sizes = sorted(row["file_size"] for row in published["organisms"][0]["files"])
    assert sorted(row["file_size"] for row in rows(answer)) == sizes
    assert not any("Ga0499978" in str(row) or "1323348" in str(row) for row in rows(answer))


def test_twelve_groups_take_two_pages_and_show_files_twice(rehearse_jdp: Callable[..., Jdp]) -> None:
    catalog = Catalog()
    add_published(catalog, PROPOSAL, "grow", scale=1e-7, groups=12)
    jdp = rehearse_jdp(catalog)
    pages = [jdp.search(q=1500001, f="project_id", p=page, x=10) for page in (1, 2, 3)]
    assert [page["next_page"] for page in pages] == [True, False, False]
    assert [len(page["organisms"]) for page in pages] == [10, 2, 0]
    every = [row["_id"] for page in pages for row in rows(page)]
    assert len(every) == pages[0]["file_total"] > len(set(every)) == pages[0]["unique_file_total"] == 85
    assert jdp.anonymous.get("/search/", params={"q": 1, "x": 51}).status_code == 400
    assert jdp.anonymous.get("/search/", params={"q": 1, "x": 50}).status_code == 200
    assert jdp.anonymous.get("/search/", params={"q": 1, "f": "colour"}).status_code == 400


def test_a_file_of_two_analyses_is_found_under_both(rehearse_jdp: Callable[..., Jdp]) -> None:
    catalog = Catalog()
    add_published(catalog, PROPOSAL, "grow", biosamples=2, scale=1e-7, shared=2, trap_rate=0.0)
    first, second = (each.its_ap_id for each in catalog.analyses.values() if each.type == "Metagenome Analysis")
    jdp = rehearse_jdp(catalog)
    shared = [
        row
        for row in rows(jdp.search(q=second, f="project_id"))
        if isinstance(row["metadata"]["analysis_project_id"], list)
    ]
    assert {row["_id"] for row in shared} <= {row["_id"] for row in rows(jdp.search(q=first, f="project_id"))}
    assert {tuple(row["metadata"]["analysis_project_id"]) for row in shared} == {(first, second)}
    assert len({row["_id"] for row in shared}) == 2 < len(shared)


def test_records_are_as_odd_as_real_ones(rehearse_jdp: Callable[..., Jdp]) -> None:
    catalog = Catalog()
    add_published(catalog, PROPOSAL, "grow", trap_rate=1.0)
    found = rows(rehearse_jdp(catalog).search(q=1500001, f="project_id"))
    assert set(TRAPS) == {trap for file in catalog.files.values() for trap in file.traps}
    assert all(isinstance(row["file_size"], float) for row in found)
    assert not any("md5sum" in row or "dt_to_purge" in row for row in found)
    assert {row["file_status"] for row in found} == {"BACKUP_COMPLETE"}
    assert {type(row["file_type"]) for row in found} == {str, list}
    assert {type(row["metadata"].get("seq_unit_name")) for row in found} == {str, type(None)}
    assert {type(row["metadata"]["analysis_project_id"]) for row in found} == {list}


def test_a_file_on_tape_keeps_its_old_purge_date(rehearse_jdp: Callable[..., Jdp]) -> None:
    catalog = Catalog()
    add_published(catalog, PROPOSAL, "grow", trap_rate=0.0, on_disk_rate=0.3)
    found = rows(rehearse_jdp(catalog).search(q=1500001, f="project_id"))
    assert all(row["dt_to_purge"].startswith("2023-") for row in found if row["file_status"] == "PURGED")
    assert all(row["dt_to_purge"].startswith("2027-01-") for row in found if row["file_status"] == "RESTORED")
    assert {row["file_status"]: row["file_status_id"] for row in found} == {"PURGED": 10, "RESTORED": 13}


def test_look_up_by_ids_takes_fifty(rehearse_jdp: Callable[..., Jdp]) -> None:
    catalog = Catalog()
    add_published(catalog, PROPOSAL, "grow", scale=1e-7)
    jdp = rehearse_jdp(catalog)
    assert set(jdp.by_ids([*jdp.ids[:49], "0" * 24])) == set(jdp.ids[:49])
    assert jdp.http.post("/search/by_file_ids/", json={"ids": jdp.ids[:51]}).status_code == 400
    assert jdp.http.post("/search/by_file_ids/", json={"ids": "one"}).status_code == 400


def test_private_files_are_shown_to_who_asks_with_a_token(rehearse_jdp: Callable[..., Jdp]) -> None:
    catalog = Catalog()
    add_published(catalog, PROPOSAL, "grow", scale=1e-7, private_rate=1.0)
    jdp = rehearse_jdp(catalog)
    params = {"q": 1500001, "f": "project_id", "include_private_data": 1}
    assert jdp.search(**params)["file_total"] == 0
    assert jdp.http.get("/search/", params=params).json()["file_total"] == 85
    assert jdp.by_ids(jdp.ids[:1]) == {}
    assert jdp.by_ids(jdp.ids[:1], include_private_data=1)


def test_a_search_ignores_a_token_that_is_not_good(rehearse_jdp: Callable[..., Jdp]) -> None:
    catalog = Catalog()
    add_published(catalog, PROPOSAL, "grow", scale=1e-7)
    jdp = rehearse_jdp(catalog)
    headers = {"Authorization": "Bearer of.gold.only"}
    found = jdp.anonymous.get("/search/", params={"q": 1500001, "f": "project_id"}, headers=headers)
    assert found.json()["file_total"] == 85


def test_a_random_project_has_exactly_the_size_asked_for_and_the_same_with_the_same_seed() -> None:
    def made(seed: int) -> list[tuple[Any, ...]]:
        catalog = Catalog(seed)
        add_random(catalog, PROPOSAL, "large", total_bytes=3 * 10**13 + 7, biosamples=5, files_each=200)
        return [(file.id, file.name, file.size, file.md5) for file in catalog.files.values()]

    assert sum(size for _, _, size, _ in made(1)) == 3 * 10**13 + 7
    assert made(1) == made(1) != made(2)
    assert len({name for _, name, _, _ in made(1)}) < 1000  # the same names in several samples


def test_small_files_have_real_bytes_and_their_true_md5() -> None:
    catalog = seed_scenario(Catalog(), "sop")
    assert len(catalog.proposals) == 3
    for file in catalog.files.values():
        assert file.content is not None
        assert (file.size, file.md5) == (len(file.content), hashlib.md5(file.content).hexdigest())
    assert {name for file in catalog.files.values() for name in ODD_NAMES if file.name == name} == set(ODD_NAMES)
    assert sum(file.size for file in catalog.files.values()) < 10**6
    places = [(file.directory, file.name) for file in catalog.files.values()]
    assert len(set(places)) == len(places)


def test_a_name_may_be_in_two_directories_of_one_analysis() -> None:
    catalog = Catalog()
    add_published(catalog, PROPOSAL, "grow")
    twice = [file.directory for file in catalog.files.values() if file.name == "pairedMapped_sorted.bam.cov"]
    assert len(set(twice)) == 2
