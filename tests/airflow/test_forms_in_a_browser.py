"""Every DAG's form, filled in by a browser with what its page says, starts a run with exactly that conf.

Invariant: what is expected comes from the DAG's page and from its model; that load_request takes it is read from Airflow.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from playwright.sync_api import Page, expect

import dags
from include.core.request import Request, param_schemas
from include.plates.request import RestoreRequest
from rehearsal.api import Run
from rehearsal.stack import Stack
from tests.airflow.conftest import HANG
from tests.airflow.form import CHROMIUM, TriggerForm, browser_page

pytestmark = [
    pytest.mark.airflow,
    HANG,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine: install the package chromium"),
]
WAIT_SECONDS = 30.0
MODULES = {path.stem: importlib.import_module(f"dags.{path.stem}") for path in Path(dags.__path__[0]).glob("*.py")}


def model_of(module: ModuleType) -> type[Request]:
    """What a DAG's file imports as its request; `Request` itself where nobody asks it for anything."""
    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Request)]
    return found[0] if found else Request


MODELS = {dag_id: model_of(module) for dag_id, module in sorted(MODULES.items())}


@pytest.fixture(scope="module")
def page(stack: Stack) -> Iterator[Page]:
    """As uli, who may trigger."""
    with browser_page(stack.address, stack.api_as("uli").token(), WAIT_SECONDS * stack.slowness) as page:
        yield page


@pytest.fixture(autouse=True)
def failed_form(page: Page, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """What the browser showed at the end, for whoever looks why a test failed."""
    yield
    page.screenshot(path=tmp_path / "form.png")


def defaults(dag_id: str) -> dict[str, Any]:
    return {name: schema["default"] for name, schema in param_schemas(MODELS[dag_id]).items()}


def on_its_page(dag_id: str) -> dict[str, Any]:
    """The first conf that the DAG's page shows."""
    found: dict[str, Any] = json.loads(re.findall(r"```json\n(.*?)```", MODULES[dag_id].__doc__ or "", re.DOTALL)[0])
    return found


def something_else(name: str, schema: dict[str, Any], model: type[Request]) -> Any:
    """A value for a field that is not its default."""
    examples = model.model_fields[name].examples
    if examples:
        return examples[0]
    if "enum" in schema:
        return next(value for value in schema["enum"] if value not in (None, schema["default"]))
    kind = next(kind for kind in schema["type"] if kind != "null")
    if kind == "boolean":
        return not schema["default"]
    return "some-text" if kind == "string" else schema["default"] + (1 if schema["default"] < schema["maximum"] else -1)


@pytest.fixture(scope="module")
def sent(stack: Stack, page: Page) -> dict[str, Run]:
    """A run of each DAG, by its form filled in as its page says; they go on while other forms are filled in."""
    runs = {}
    for dag_id, model in MODELS.items():
        form = TriggerForm(page, stack.address, dag_id, param_schemas(model))
        required = [name for name, field in model.model_fields.items() if field.is_required()]
        assert form.complaints() == len(required), f"{dag_id}: each required field says so"
        if required:
            expect(form.button).to_be_disabled()
        assert [section for section, is_open in form.sections().items() if is_open] in (["Run Parameters"], [])
        form.fill(on_its_page(dag_id))
        form.send()
        runs[dag_id] = stack.api.runs(dag_id)[0]
    return runs


@pytest.mark.parametrize("dag_id", MODELS)
def test_a_form_with_what_its_page_says_starts_a_run_with_that_conf(sent: dict[str, Run], dag_id: str):
    assert sent[dag_id].raw["conf"] == defaults(dag_id) | on_its_page(dag_id)
    assert sent[dag_id].raw["triggering_user_name"] == "uli"


@pytest.mark.parametrize("dag_id", [dag_id for dag_id, model in MODELS.items() if model.model_fields])
def test_every_field_of_a_form_can_be_filled_in(stack: Stack, page: Page, dag_id: str):
    schemas = param_schemas(MODELS[dag_id])
    asked = {name: something_else(name, schema, MODELS[dag_id]) for name, schema in schemas.items()}
    form = TriggerForm(page, stack.address, dag_id, schemas)
    form.fill(asked)
    form.send()
    (run,) = stack.api.runs(dag_id)[:1]
    assert run.raw["conf"] == asked


def test_a_required_field_that_is_emptied_blocks_the_button_and_says_why(stack: Stack, page: Page):
    form = TriggerForm(page, stack.address, "plate_restore", param_schemas(RestoreRequest))
    form.fill({"project": "P", "batch": "B"})
    expect(form.button).to_be_enabled()
    form.fill({"batch": ""})
    expect(form.button).to_be_disabled()
    expect(form.dialog.get_by_text("This field is required", exact=True)).to_be_visible()


@pytest.mark.parametrize("dag_id", [dag_id for dag_id, model in MODELS.items() if model is not Request])
def test_load_request_takes_what_the_form_sends(stack: Stack, sent: dict[str, Run], dag_id: str):
    run_id = sent[dag_id].run_id
    task = stack.api.wait_task(dag_id, run_id, "load_request", 90)
    assert task.state == "success", stack.api.xcom(dag_id, run_id, "load_request", "request_errors")


@pytest.fixture(scope="module", autouse=True)
def over(stack: Stack) -> Iterator[None]:
    """Runs that these tests leave unfinished end, and the DAGs with a schedule sleep again."""
    yield
    for dag_id in MODELS:
        for run in stack.api.runs(dag_id):
            if run.state not in ("success", "failed"):
                stack.api.set_run_state(dag_id, run.run_id, "failed")
    for dag_id in ("waybill_maintenance", "plate_drill", "jgi_staging"):
        stack.api.pause(dag_id)
