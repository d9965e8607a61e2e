"""The confs of plate_backup and plate_restore: strict, flat, and every fault told at once."""

from __future__ import annotations

from typing import Any

import pytest

from include.core.errors import RequestError
from include.core.request import LOST_IN_FORM, load, load_without_faults, param_schemas
from include.plates.layout import BROAD2018, CPG
from include.plates.models import GIB
from include.plates.request import MOST_PLATES, BackupRequest, PlatesRequest, RestoreRequest

IDS = {"project": "P", "batch": "B"}
ROWS = [{"plate_id": "20585", "plate_id_full": "20585"}]
OWN = {
    "layout": "own",
    "part_prefixes": {"images": "{project}/{batch}/{plate_id_full}/"},
    "archive_prefix": "archives/",
    "backup_prefix": "listings/",
}


def faults(model: type[PlatesRequest], **conf: Any) -> list[str]:
    """Everything that is wrong, as load_request tells it."""
    whole = {**IDS, **conf}
    problems: list[str] = []
    try:
        request: PlatesRequest | None = load(model, whole)
    except RequestError as error:
        problems, request = list(error.problems), load_without_faults(model, whole, error.problems)
    try:
        if request is not None:
            request.plates_used(None)
    except RequestError as error:
        problems += error.problems
    return problems


def test_project_batch_and_plates_are_enough_and_delete_nothing():
    request = load(BackupRequest, {**IDS, "plates": ROWS})
    assert (request.delete_parts, request.retention, request.dry_run) == ([], "versioned", False)
    assert request.layout_used() == BROAD2018
    assert request.settings_used().compression == "gzip"
    assert request.settings_used().volume_bytes == 300 * GIB


def test_every_fault_is_told_at_once():
    told = faults(BackupRequest, plates=[{"plate_id": "1"}], typo=1, retention="maybe", undo_days=3)
    assert len(told) == 4
    for word in ("plates.0.plate_id_full", "typo", "retention", "undo_days"):
        assert any(line.startswith(word) for line in told), word


@pytest.mark.parametrize(
    ("conf", "word"),
    [
        ({}, "give exactly one"),
        ({"plates": []}, "give exactly one"),
        ({"plates": ROWS, "plates_uri": "file:///x"}, "give exactly one"),
        ({"plates": ROWS * 2}, "given twice"),
        ({"plates": [{"plate_id": "", "plate_id_full": "x"}]}, "is empty"),
        ({"plates": [{"plate_id": "a/b", "plate_id_full": "x"}]}, "holds a slash"),
        ({"plates": ROWS * (MOST_PLATES + 1)}, "split them"),
        ({"plates": ROWS, "layout": "cpg"}, "cpg needs it"),
        ({"plates": ROWS, "layout": "own"}, "own needs part_prefixes"),
        ({"plates": ROWS, "strip": "x", "archive_prefix": "a/"}, "only for layout own"),
        ({"plates": ROWS, **OWN, "part_prefixes": {"images": "{project}/"}}, "names no plate"),
        ({"plates": ROWS, **OWN, "part_prefixes": {"images": "{nobody}/{plate_id}/"}}, "known are"),
        ({"plates": ROWS, **OWN, "part_prefixes": {"Bad Name": "{plate_id}/"}}, "part_prefixes"),
        ({"plates": ROWS, "bucket": "s3://bucket"}, "bucket"),
    ],
)
def test_what_both_refuse(conf: dict[str, Any], word: str):
    for model in (BackupRequest, RestoreRequest):
        assert any(word in line for line in faults(model, **conf)), faults(model, **conf)


@pytest.mark.parametrize(
    ("conf", "word"),
    [
        ({"delete_parts": ["images", "metadata"]}, "metadata not known"),
        ({"undo_days": 5}, "nothing is deleted"),
        ({"copy_by": "server"}, "compression none"),
        ({"copy_by": "me"}, "copy_by"),
        ({"proof": "store_proved", "delete_parts": ["images"]}, "nothing is read back"),
        ({"level": 12}, "zstd only"),
        ({"storage_class": "deep archive"}, "storage_class"),
        ({"approval_days": 0}, "approval_days"),
        ({"approval_days": 31}, "approval_days"),
    ],
)
def test_what_a_backup_refuses(conf: dict[str, Any], word: str):
    assert any(word in line for line in faults(BackupRequest, plates=ROWS, **conf))


@pytest.mark.parametrize("conf", [{"to_prefix": "x"}, {"to_prefix": "/x/"}, {"tier": "Now"}, {"days": 0}])
def test_what_a_restore_refuses(conf: dict[str, Any]):
    assert faults(RestoreRequest, plates=ROWS, **conf)


@pytest.mark.parametrize(
    "conf",
    [
        {"copy_by": "server", "compression": "none"},
        {"copy_by": "server", "layout": "cpg", "source": "source_4"},
        {"proof": "store_proved", "deletion_needs": "store_proved", "delete_parts": ["images"]},
        {"proof": "store_proved"},
        {"level": 12, "compression": "zstd"},
        {"delete_parts": ["images"], "undo_days": 5},
        OWN,
    ],
)
def test_what_a_backup_takes(conf: dict[str, Any]):
    assert faults(BackupRequest, plates=ROWS, **conf) == []


def test_own_templates_make_a_layout_and_its_parts_may_be_deleted():
    request = load(BackupRequest, {**IDS, "plates": ROWS, **OWN, "delete_parts": ["images"], "copy_by": "server"})
    assert [part.name for part in request.layout_used().parts] == ["images"]
    assert request.settings_used().copy_by == "server"
    assert request.settings_used().compression == "none"


def test_two_measurements_of_one_plate_id_are_told_apart():
    rows = [{"plate_id": "1", "plate_id_full": "1__a"}, {"plate_id": "1", "plate_id_full": "1__b"}]
    assert all(plate.tag_by_full for plate in load(BackupRequest, {**IDS, "plates": rows}).plates_used(None))


def test_plates_csv_is_read_as_the_procedure_writes_it():
    request = load(BackupRequest, {**IDS, "plates_uri": "file:///in/plates.csv"})
    plates = request.plates_used(b"plate_id,plate_id_full\n1,1__2016-04-21T03_34_00-Measurement 1\n")
    assert plates[0].plate_id_full == "1__2016-04-21T03_34_00-Measurement 1"
    for wrong in (b"id,full\n1,1\n", b"plate_id,plate_id_full\n", b"\xff\xfe"):
        with pytest.raises(RequestError):
            request.plates_used(wrong)
    many = "plate_id,plate_id_full\n" + "".join(f"{n},{n}\n" for n in range(MOST_PLATES + 1))
    with pytest.raises(RequestError, match="split it"):
        request.plates_used(many.encode())


@pytest.mark.parametrize("model", [BackupRequest, RestoreRequest])
def test_the_form_may_have_dropped_what_was_pasted(model: type[PlatesRequest]):
    (told,) = faults(model, plates=None)
    assert "(given: none)" in told
    assert LOST_IN_FORM in told
    (told,) = faults(model, plates=ROWS, plates_uri="file:///x")
    assert "(given: plates and plates_uri)" in told
    assert LOST_IN_FORM not in told
    fields = param_schemas(model)
    assert all("not valid JSON" in fields[name]["description_md"] for name in ("plates", "part_prefixes"))


def test_faults_of_every_rule_are_told_beside_those_of_the_others():
    conf = {
        "plates": ROWS,
        "plates_uri": "file:///x",
        "level": 12,
        "delete_parts": ["image"],
        "source": "s",
        "bucket": "A/",
    }
    told = faults(BackupRequest, **conf)
    for word in ("plates and plates_uri", "level", "delete_parts: image not known", "source", "bucket"):
        assert len([line for line in told if line.startswith(word)]) == 1, word
    assert len(told) == 5
    told = faults(RestoreRequest, parts=["image"], to_prefix="/x", strip="p/", layout="cpg")
    for word in (
        "plates and plates_uri",
        "to_prefix",
        "parts: image not known",
        "source: layout cpg needs it",
        "strip: only",
    ):
        assert len([line for line in told if line.startswith(word)]) == 1, word
    assert len(told) == 5


@pytest.mark.parametrize("plates", [{}, {"plates": "x"}, {"plates_uri": ""}, {"plates": ROWS}, {"plates": ROWS * 2}])
def test_names_that_are_no_folders_are_told_once_whatever_the_plates_are(plates: dict[str, Any]):
    wrong = {"project": "p/", "batch": "../x", "source": ".."}
    for model in (BackupRequest, RestoreRequest):
        told = faults(model, **wrong, layout="cpg", **plates)
        for name in wrong:
            assert len([line for line in told if line.startswith(f"{name}: ")]) == 1, told
        assert len(told) == 3 + (plates != {"plates": ROWS}), told


def test_an_empty_text_of_the_form_is_no_value():
    sent = {
        "storage_class": "",
        "plates_uri": "",
        "archive_prefix": "",
        "source": "",
        "level": 5.0,
    }
    request = load(BackupRequest, {**IDS, "plates": ROWS, **sent})
    assert (request.storage_class, request.archive_prefix, repr(request.level)) == (None, None, "5")


@pytest.mark.parametrize(
    ("conf", "word"),
    [
        ({"source": "source_4"}, "layout broad2018 does not use it"),
        ({**OWN, "source": "source_4"}, "layout own does not use it"),
        ({**OWN, "archive_prefix": "{source}/"}, "layout own needs it"),
        ({"strip": "x/"}, "strip: only for layout own"),
        ({"tag": "{plate_id}"}, "tag: only for layout own"),
    ],
)
def test_a_field_that_the_layout_does_not_use_is_refused(conf: dict[str, Any], word: str):
    for model in (BackupRequest, RestoreRequest):
        assert any(word in line for line in faults(model, plates=ROWS, **conf))


def test_the_form_sends_the_defaults_of_fields_that_the_layout_does_not_use():
    sent = {name: schema["default"] for name, schema in param_schemas(BackupRequest).items()}
    assert faults(BackupRequest, **{**sent, **IDS, "plates": ROWS}) == []


@pytest.mark.parametrize(
    "wrong", [{"part_prefixes": {"images": 5}}, {"layout": 5}, {"strip": 5}, {"part_prefixes": "x"}]
)
def test_fields_of_a_wrong_type_are_told_and_nothing_else_breaks(wrong: dict[str, Any]):
    assert any(line.startswith(next(iter(wrong))) for line in faults(BackupRequest, **{"plates": ROWS, **OWN, **wrong}))


@pytest.mark.parametrize(
    ("undo_days", "purge", "phase"), [(0, False, "delete"), (3, False, "marker"), (3, True, "purge")]
)
def test_an_order_holds_the_phase_that_the_request_means(undo_days: float, purge: bool, phase: str):
    conf = {**IDS, "plates": ROWS, "delete_parts": ["illum", "images", "illum"], "undo_days": undo_days}
    order = load(BackupRequest, conf).order("abc", purge=purge)
    assert (order.phase, order.parts, order.approved_sha256) == (phase, ("illum", "images"), "abc")


def test_who_may_approve_is_no_field_of_a_request():
    assert not [name for name in BackupRequest.model_fields if "approver" in name or "self" in name]


@pytest.mark.parametrize("model", [BackupRequest, RestoreRequest])
def test_the_form_is_flat_and_describes_every_field(model: type[PlatesRequest]):
    for name, schema in param_schemas(model).items():
        assert schema["description_md"], name
        assert "$ref" not in str(schema)
        assert "anyOf" not in schema


def test_the_gallery_s_layout_needs_a_source_and_packs_without_compression():
    conf = {**IDS, "plates": ROWS, "layout": "cpg", "source": "source_4"}
    request = load(BackupRequest, conf)
    assert (request.layout_used(), request.settings_used().compression) == (CPG, "none")
