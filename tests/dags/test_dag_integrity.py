"""What every DAG file must be: importable at little cost, wired as its page says, described, and the same at every parse."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pydantic
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization, LazyDeserializedDAG
from operators.common.base import DEFAULT_ARGS, WaybillRetry
from operators.common.load_request import LoadRequestOperator
from operators.common.receipt import ReceiptOperator

from include.core.request import Request

ROOT = Path(__file__).parents[2]
EDGES = {
    "icav2_copy_batch": {"load_request": ["copy", "plan"], "plan": ["copy"], "copy": ["receipt"], "receipt": []},
    "jgi_staging": {
        "load_request": ["take_up"], "take_up": ["metadata"], "metadata": ["restore"], "restore": ["wait"],
        "wait": ["transfer", "verify"], "transfer": ["verify"], "verify": ["receipt"], "receipt": [],
    },
    "plate_backup": {
        "load_request": ["plan"], "plan": ["archive"], "archive": ["verify"], "verify": ["approval"],
        "approval": ["gate"], "gate": ["delete"], "delete": ["purge"], "purge": ["receipt"], "receipt": [],
    },
    "plate_drill": {"load_request": ["plan"], "plan": ["drill"], "drill": ["receipt"], "receipt": []},
    "plate_restore": {
        "load_request": ["plan"], "plan": ["thaw"], "thaw": ["restore"], "restore": ["receipt"], "receipt": [],
    },
    "waybill_maintenance": {
        "check_ledger": ["cancellations"], "cancellations": [], "list_in_doubt": [],
        "index_archives": [], "clean_up_staging": [],
    },
}  # fmt: skip
NOBODY_ASKS = {"waybill_maintenance"}  # no request, so no receipt
OWN_VALUES = {
    ("jgi_staging", "execution_timeout"),  # a proposal has hundreds of biosamples to look up
    ("plate_backup", "execution_timeout"),  # a plate of terabytes is archived in one leg
    ("plate_restore", "execution_timeout"),
    ("plate_drill", "execution_timeout"),
    ("approval", "retries"),  # a retry would put the question again
    ("approval", "execution_timeout"),  # a person answers when a person answers
}
HEAVY = ["boto3", "botocore", "pymongo", "globus_sdk", "paramiko", "asyncssh", "moto", "pandas", "numpy"]


@pytest.fixture(scope="module")
def bag(metadata_database: Path) -> DagBag:
    return DagBag(str(ROOT / "dags"), collect_dags=True)


@pytest.fixture(scope="module", params=sorted(EDGES))
def dag(bag: DagBag, request: pytest.FixtureRequest) -> Any:
    return bag.dags[request.param]


def test_every_file_imports_and_every_dag_stands_in_the_edge_map(bag: DagBag):
    assert bag.import_errors == {}
    assert bag.dags.keys() == EDGES.keys(), "a new DAG needs a line in EDGES"


def test_the_tasks_are_wired_as_the_edge_map_says(dag: Any):
    assert {task.task_id: sorted(task.downstream_task_ids) for task in dag.tasks} == EDGES[dag.dag_id]


def test_the_frame_is_the_same_everywhere(dag: Any):
    if dag.dag_id in NOBODY_ASKS:
        assert not dag.params
        return
    (first,) = dag.roots
    (last,) = dag.leaves
    assert isinstance(first, LoadRequestOperator)
    assert isinstance(last, ReceiptOperator)
    assert last.trigger_rule == "all_done"


def test_the_page_of_a_dag_is_its_docstring_and_says_how_to_start_it_and_what_to_do_when_it_is_red(dag: Any):
    asked = () if dag.dag_id in NOBODY_ASKS else ("**Trigger**", "```json")
    for part in ("# ", *asked, "**When it is red.**"):
        assert part in dag.doc_md
    for task in dag.tasks:
        assert f"*{task.task_id}*" in dag.doc_md, f"the page does not name the task {task.task_id}"


def test_every_task_has_waybills_defaults(dag: Any):
    assert dag.tags >= {"waybill"}
    for task in dag.tasks:
        for name in ("owner", "retries", "retry_delay", "max_retry_delay", "execution_timeout"):
            if not {(dag.dag_id, name), (task.task_id, name)} & OWN_VALUES:
                assert getattr(task, name) == DEFAULT_ARGS[name], f"{task.task_id}: {name}"
        assert isinstance(task.retry_policy, WaybillRetry)


def test_every_task_that_defers_has_a_retry(dag: Any):
    deferring = [task for task in dag.tasks if getattr(task, "deferrable", False)]
    assert all(task.retries >= 1 for task in deferring)
    assert deferring or dag.dag_id != "icav2_copy_batch"


def test_no_task_starts_in_the_triggerer(dag: Any):
    """Airflow gives every index of a mapped task the same arguments there (docs/protocols/airflow.md 2.9)."""
    assert not any(getattr(task, "start_from_trigger", False) for task in dag.tasks)


# -- params ------------------------------------------------------------------------------------------------------


def test_every_param_is_described_and_its_schema_is_flat(dag: Any):
    for name in dag.params:
        param = dag.params.get_param(name)
        assert param.schema["description_md"], f"{name} has no description"
        assert param.description is None, "the form would show it instead of the text with the example"
        assert "$ref" not in json.dumps(param.schema)
        assert "anyOf" not in param.schema, f"{name}: nullable is a list of types"
        assert "type" in param.schema
        jsonschema.Draft202012Validator.check_schema(param.schema)
        required = model_of(dag).model_fields[name].is_required()
        assert required or jsonschema.Draft202012Validator(param.schema).is_valid(param.value), f"{name}: its default"


def model_of(dag: Any) -> Any:
    return dag.get_task("load_request").model if dag.dag_id not in NOBODY_ASKS else Request


def test_every_field_of_a_form_has_a_title_in_words_and_a_sentence(dag: Any):
    for name, field in model_of(dag).model_fields.items():
        assert field.title, f"{name} has no title"
        assert "_" not in field.title and field.title[0].isupper(), f"{name}: {field.title}"
        for ending, unit in UNITS.items():
            assert not name.endswith(ending) or f"({unit})" in field.title, f"{name}: its title names no unit"
        assert field.description.endswith("."), f"{name}: {field.description}"


UNITS = {"_gib": "GiB", "_mib": "MiB", "_seconds": "seconds", "_minutes": "minutes", "_hours": "hours", "_days": "days"}


def test_optional_fields_are_optional_and_required_ones_are_seen_at_once(dag: Any):
    """The form blocks its button, without a word, while a field that is not nullable is empty."""
    for name, field in model_of(dag).model_fields.items():
        schema = dag.params.get_param(name).schema
        assert ("null" in schema["type"]) != field.is_required(), name
        assert not (field.is_required() and "section" in schema), f"{name}: its section is closed at first"
        assert dag.params.get_param(name).value != "", name


def test_a_scheduled_dag_asks_for_nothing_since_its_runs_have_an_empty_conf(dag: Any):
    if dag.schedule is not None:
        assert not [name for name, field in model_of(dag).model_fields.items() if field.is_required()]
        assert model_of(dag).model_validate({})


def test_what_reads_whole_plates_by_schedule_waits_until_an_operator_switches_it_on(bag: DagBag):
    drill = bag.dags["plate_drill"]
    assert (drill.catchup, drill.is_paused_upon_creation, drill.max_active_runs) == (False, True, 1)


def test_a_dry_run_comes_first_and_what_few_people_need_is_in_a_closed_section(dag: Any):
    names = list(dag.params)
    assert "dry_run" not in names[1:]
    sections = [dag.params.get_param(name).schema.get("section") for name in names]
    assert sections.count(None) <= 10, "the part that is open shows what most people need"
    assert not {"Run Parameters", "Advanced Options"} & set(sections), "Airflow's own parts of the form"
    assert all(section is None or section[0].isupper() for section in sections)


def test_every_json_field_has_an_example_that_the_model_takes(dag: Any):
    for name, field in model_of(dag).model_fields.items():
        schema = dag.params.get_param(name).schema
        as_json = "object" in schema["type"] or schema.get("items", {}).get("type") == "object"
        assert not as_json or "```json" in schema["description_md"], f"{name} has no example"
        for example in field.examples or []:
            assert jsonschema.Draft202012Validator(schema).is_valid(example), f"{name}: {example}"
            assert not faults(model_of(dag), name, example, strict=True), f"{name}: {example}"
        for code in re.findall(r"```\w+\n(.*?)```", schema["description_md"], re.DOTALL):
            assert max(map(len, code.splitlines())) <= 72, f"{name}: wide code pushes the titles aside"


VALUES = [
    None, True, False, 0, 1, 5, 20, 21, 200, 2000, 2001, -1, 0.0, 0.5, 1.0, 30.0, 3600.0, 3601, 10080, 10081, 1e9,
    "", "5", "true", "many", "size", "size_and_etag", "SIZE", "refuse", "allow", [], ["a"], {}, {"a": []}, {"a": ["b"]},
]  # fmt: skip


def test_what_the_form_refuses_the_model_refuses_too(dag: Any):
    """Strictly read: a number spelled as text passes the model, but Airflow has refused it when the run was triggered."""
    for name, value, form, _model, strict in verdicts(dag):
        assert form or not strict, f"{name}={value!r}"


def test_what_the_form_accepts_the_model_accepts_too(dag: Any):
    only_the_model_knows = {"manifest_uri"}  # what a URI may hold has no word in JSON schema
    refused = {name for name, _value, form, model, _strict in verdicts(dag) if form and not model}
    assert refused <= only_the_model_knows


def verdicts(dag: Any) -> Iterator[tuple[str, Any, bool, bool, bool]]:
    """Each field alone with each value: accepted by the form, by the model, by the model without conversions."""
    model = model_of(dag)
    assert dag.params.keys() == model.model_fields.keys()
    for name in model.model_fields:
        form = jsonschema.Draft202012Validator(dag.params.get_param(name).schema)
        for value in VALUES:
            lax, strict = (not faults(model, name, value, strict=strict) for strict in (False, True))
            yield name, value, form.is_valid(value), lax, strict


def faults(model: Any, name: str, value: Any, *, strict: bool) -> list[Any]:
    """What the model says of this field itself; of the whole it may say more."""
    try:
        model.model_validate({name: value}, strict=strict)
    except pydantic.ValidationError as error:
        return [fault for fault in error.errors() if fault["loc"][:1] == (name,)]
    return []


# -- what parsing costs and makes --------------------------------------------------------------------------------


REPORT = f"""
import json, sys
import airflow.settings
airflow.settings.initialize()
from airflow.dag_processing.dagbag import DagBag
bag = DagBag({str(ROOT / "dags")!r}, collect_dags=True)
report = {{"import errors": bag.import_errors, "heavy": sorted({HEAVY!r} & sys.modules.keys())}}

from airflow import plugins_manager
from airflow.serialization.serialized_objects import DagSerialization
plugins, errors = plugins_manager._get_plugins()
report |= {{
    "dags": {{name: json.dumps(DagSerialization.to_dict(dag), sort_keys=True) for name, dag in bag.dags.items()}},
    "plugins": {{p.name: str(p.source) for p in plugins}},
    "plugin errors": errors,
    "links": [link.name for link in plugins_manager.get_operator_extra_links()],
    "modules": sorted(sys.modules),
}}
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def parsed() -> list[dict[str, Any]]:
    """What two new interpreters find when they parse the DAGs and load the plugins, with different hash seeds."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", REPORT], env={**environment, "PYTHONHASHSEED": seed}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for seed in ("1", "2")
    ]  # fmt: skip
    reports = []
    for process in processes:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error[-3000:]
        reports.append(json.loads(out.splitlines()[-1]))
    return reports


def test_parsing_the_dags_loads_no_heavy_library(parsed: list[dict[str, Any]]):
    for report in parsed:
        assert report["import errors"] == {}
        assert report["heavy"] == []


def test_the_plugin_manager_runs_exactly_one_file(parsed: list[dict[str, Any]]):
    stems = {path.stem for path in (ROOT / "plugins").glob("*/*.py")}
    for report in parsed:
        assert report["plugins"] == {"waybill": "$PLUGINS_FOLDER/waybill_plugin.py"}
        assert report["plugin errors"] == {}
        assert stems & set(report["modules"]) == set(), "a file was run as a plugin, under its bare name"
        assert "portal.app" not in report["modules"], "only the API server needs the portal"


def test_the_link_to_the_receipt_is_registered(parsed: list[dict[str, Any]]):
    assert parsed[0]["links"] == ["Receipt"]


def test_a_dag_is_the_same_at_every_parse(parsed: list[dict[str, Any]]):
    first, second = parsed
    assert first["dags"].keys() == EDGES.keys()
    assert first["dags"] == second["dags"], "a value that differs at every parse makes a new DAG version each time"


def test_airflows_own_check_finds_nothing_that_varies():
    from airflow.utils.dag_version_inflation_checker import check_dag_file_stability

    for path in sorted((ROOT / "dags").glob("*.py")):
        assert check_dag_file_stability(str(path)).format_warnings() is None


def test_a_dag_survives_the_way_through_the_database(dag: Any):
    text = json.dumps(DagSerialization.to_dict(dag))
    back = LazyDeserializedDAG(data=json.loads(text))._real_dag
    assert {task.task_id: sorted(task.downstream_task_ids) for task in back.tasks} == EDGES[dag.dag_id]
    links = {task.task_id: [link.name for link in task.operator_extra_links] for task in back.tasks}
    for task_id in {"copy", "receipt"} & links.keys():
        assert links[task_id] == ["Receipt"]
