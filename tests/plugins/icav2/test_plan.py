"""The plan: every source resolved and every destination looked at before any job exists, and judged once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from operators.icav2.plan import ICAv2PlanOperator

from include.core.errors import LedgerError, RequestError
from include.core.ledger import Ledger
from include.icav2.models import CopyPlan
from tests.plugins.conftest import SIZE_BYTES, SOURCE, TARGET, Connect, Ica
from tests.plugins.doubles import Run


@pytest.fixture
def plan() -> ICAv2PlanOperator:
    return ICAv2PlanOperator(task_id="plan")


@pytest.fixture(autouse=True)
def places(ledger: Ledger, receipts_folder: Path) -> None:
    """Every plan needs a ledger and a place for its document."""


def refusals(run: Run, plan: ICAv2PlanOperator) -> list[str]:
    with pytest.raises(RequestError):
        run.execute(plan)
    return run.xcoms["plan", "request_errors"]


def written(value: dict) -> CopyPlan:
    path = Path(value["plan"]["uri"].removeprefix("file://"))
    return CopyPlan.model_validate_json(path.read_text())


def test_the_plan_lies_beside_the_receipt_and_xcom_holds_only_its_digest_and_counts(
    plan: ICAv2PlanOperator, ica: Ica, receipts_folder: Path
):
    value = Run(ica.conf(3, 2)).execute(plan)
    assert value.keys() == {"plan", "destinations", "files", "bytes"}
    assert (value["destinations"], value["files"], value["bytes"]) == (3, 6, 6 * SIZE_BYTES)
    assert value["plan"]["uri"].startswith(receipts_folder.as_uri())
    assert [item.name for d in written(value).destinations for item in d.items] == ["f0.fastq.gz", "f1.fastq.gz"] * 3
    assert ica.jobs() == [], "a plan starts nothing"


def test_every_source_that_cannot_be_copied_is_refused_at_once(plan: ICAv2PlanOperator, ica: Ica):
    conf = ica.conf(1, 1)
    conf["manifest"] |= {f"icav2://{SOURCE}/run/absent{n}": [f"icav2://{TARGET}/cache/d0/"] for n in range(2)}
    ica.call(lambda sim: sim.seed_file(SOURCE, "/run/archived", 5, status="ARCHIVED"))
    conf["manifest"][f"icav2://{SOURCE}/run/archived"] = [f"icav2://{TARGET}/cache/d0/"]
    told = refusals(Run(conf), plan)
    assert len(told) == 3
    for name in ("absent0", "absent1", "ARCHIVED"):
        assert any(name in line for line in told)


def test_a_source_folder_without_its_slash_and_a_file_with_one_say_what_was_meant(plan: ICAv2PlanOperator, ica: Ica):
    ica.call(lambda sim: sim.seed_file(SOURCE, "/run/Reports/a.html", 5))
    sources = (f"icav2://{SOURCE}/run/Reports", f"icav2://{SOURCE}/run/Reports/a.html/")
    told = refusals(Run({"manifest": {uri: [f"icav2://{TARGET}/cache/"] for uri in sources}}), plan)
    assert f"did you mean …/? (“{sources[0]}/”)" in told[0]
    assert f"did you mean it without the last /? (“{sources[1][:-1]}”)" in told[1]


def test_a_folder_without_any_file_is_refused_since_ica_would_copy_nothing(plan: ICAv2PlanOperator, ica: Ica):
    ica.call(lambda sim: sim.seed_folder(SOURCE, "/run/empty/"))
    (told,) = refusals(Run({"manifest": {f"icav2://{SOURCE}/run/empty/": [f"icav2://{TARGET}/cache/"]}}), plan)
    assert "holds no file, and ICA copies no empty folders" in told


def test_a_destination_in_a_project_that_ica_does_not_know_is_refused(plan: ICAv2PlanOperator, ica: Ica):
    conf, unknown = ica.conf(1), "icav2://00000000-0000-4000-8000-000000000000/cache/"
    for folders in conf["manifest"].values():
        folders[:] = [unknown]
    (told,) = refusals(Run(conf), plan)
    assert told.startswith(f"“{unknown}”: ICA knows no such project")


def test_destinations_that_hold_strangers_are_refused_all_at_once(plan: ICAv2PlanOperator, ica: Ica):
    conf = ica.conf(2)
    for folder in ("d0", "d1"):
        ica.call(lambda sim, folder=folder: sim.seed_file(TARGET, f"/cache/{folder}/theirs.txt", 5))
    told = refusals(Run(conf), plan)
    assert len(told) == 2
    assert all("theirs.txt" in line and "require_empty_destination" in line for line in told)
    assert Run({**conf, "require_empty_destination": False}).execute(plan)["files"] == 4


def test_a_strangers_file_of_our_name_is_refused_even_where_strangers_are_allowed(plan: ICAv2PlanOperator, ica: Ica):
    conf = ica.conf(1, 1, require_empty_destination=False)
    ica.call(lambda sim: sim.seed_file(TARGET, "/cache/d0/f0.fastq.gz", 5))
    assert "holds another" in refusals(Run(conf), plan)[0]


def test_a_cleared_plan_is_used_as_it_is_although_the_destination_has_filled_meanwhile(
    plan: ICAv2PlanOperator, ica: Ica
):
    run = Run(ica.conf(1, 1))
    first = run.execute(plan)
    ica.call(lambda sim: sim.seed_file(TARGET, "/cache/d0/theirs.txt", 5))
    calls = len(ica.call(lambda sim: sim.journal.entries()))
    assert run.execute(plan) == first
    assert len(ica.call(lambda sim: sim.journal.entries())) == calls, "judged once, at the first plan"
    other_run = Run(run.conf, "manual__another")
    assert "theirs.txt" in refusals(other_run, plan)[0]


@pytest.mark.parametrize("change", ["another manifest", "another option", "the same conf again"])
def test_a_run_that_was_deleted_and_posted_anew_under_its_id_is_planned_anew(
    plan: ICAv2PlanOperator, ica: Ica, change: str
):
    first = Run(ica.conf(1, 1), "the-id")
    before = first.execute(plan)
    conf = {
        "another manifest": ica.conf(2, 1, root="/other"),
        "another option": {**first.conf, "verify": "size"},
        "the same conf again": first.conf,
    }[change]
    ica.call(lambda sim: sim.seed_file(SOURCE, "/run/late", 5))
    calls = len(ica.call(lambda sim: sim.journal.entries()))
    second = Run(conf, "the-id")
    second.run_after = "2026-01-02 04:00:00+00:00"
    after = second.execute(plan)
    assert after["plan"]["uri"] == before["plan"]["uri"]
    assert after["plan"]["sha256"] != before["plan"]["sha256"]
    assert after["destinations"] == (2 if change == "another manifest" else 1)
    assert len(ica.call(lambda sim: sim.journal.entries())) > calls, "it has looked for itself"


def test_a_plan_that_cannot_be_read_is_made_anew(plan: ICAv2PlanOperator, ica: Ica):
    run = Run(ica.conf(1, 1))
    first = run.execute(plan)
    Path(first["plan"]["uri"].removeprefix("file://")).write_text("{")
    assert run.execute(plan) == first


def test_a_manifest_by_uri_gives_the_same_plan_as_the_manifest_itself(
    plan: ICAv2PlanOperator, ica: Ica, inputs_folder: Path
):
    conf = ica.conf(2)
    (inputs_folder / "manifest.json").write_text(json.dumps(conf["manifest"]))
    direct = Run(conf, "direct").execute(plan)
    by_uri = Run({"manifest_uri": f"{inputs_folder.as_uri()}/manifest.json"}, "by_uri").execute(plan)
    assert written(by_uri).destinations == written(direct).destinations


def test_a_manifest_uri_outside_the_prefixes_is_refused(
    plan: ICAv2PlanOperator, ica: Ica, inputs_folder: Path, tmp_path: Path
):
    (tmp_path / "manifest.json").write_text(json.dumps(ica.conf(1)["manifest"]))
    (told,) = refusals(Run({"manifest_uri": (tmp_path / "manifest.json").as_uri()}), plan)
    assert "does not lie under an allowed prefix" in told
    assert inputs_folder.as_uri() in told


def test_without_a_ledger_ica_is_not_asked(plan: ICAv2PlanOperator, ica: Ica, connect: Connect, tmp_path: Path):
    connect("waybill_ledger", f"sqlite:///{tmp_path / 'nowhere.db'}")
    with pytest.raises(LedgerError):
        Run(ica.conf(1)).execute(plan)
    assert ica.call(lambda sim: dict(sim.journal.calls)) == {}
