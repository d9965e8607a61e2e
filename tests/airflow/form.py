"""Airflow's trigger form, filled in and sent by a browser as a person does it.

Invariant: it clicks and types only what a person sees; what came of it is read from Airflow's API.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Locator, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
# Nothing but Airflow is to be asked for anything; root needs no sandbox, and there is no screen.
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
)  # fmt: skip


@contextmanager
def browser_page(address: str, token: str, timeout_seconds: float) -> Iterator[Page]:
    """A page of somebody who is signed in at Airflow."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        context = browser.new_context(
            viewport={"width": 1300, "height": 1500}, permissions=["clipboard-read", "clipboard-write"]
        )
        context.set_default_timeout(timeout_seconds * 1000)
        expect.set_options(timeout=timeout_seconds * 1000)
        context.add_cookies([{"name": "_token", "value": token, "url": address}])
        yield context.new_page()
        browser.close()


class TriggerForm:
    """The form of one DAG. `schemas` are its parameters' JSON schemas by name, as Airflow stores them."""

    def __init__(self, page: Page, address: str, dag_id: str, schemas: Mapping[str, Mapping[str, Any]]):
        self._page, self._schemas, self._dag_id = page, schemas, dag_id
        page.goto(f"{address}/dags/{dag_id}")
        page.get_by_test_id("trigger-dag-button").click()
        self.dialog = page.locator("[role=dialog][data-scope=dialog]")
        self.button = page.get_by_test_id("trigger-dag-submit")
        expect(self.button).to_be_visible()

    def sections(self) -> dict[str, bool]:
        """The parts of the form, in their order, and whether they are open."""
        triggers = self.dialog.locator("[data-scope=accordion][data-part=item-trigger]").all()
        return {t.inner_text().strip(): t.get_attribute("data-state") == "open" for t in triggers}

    def open_section(self, name: str) -> None:
        trigger = self.dialog.locator("[data-scope=accordion][data-part=item-trigger]").filter(has_text=name)
        if trigger.get_attribute("data-state") != "open":
            trigger.click()
            expect(trigger).to_have_attribute("data-state", "open")

    def complaints(self) -> int:
        """How many fields say that they are required."""
        return self.dialog.get_by_text("This field is required", exact=True).count()

    def fill(self, values: Mapping[str, Any]) -> None:
        """Section by section, since only one of them is open at a time."""
        by_section: dict[str, list[str]] = {}
        for name in values:
            by_section.setdefault(self._schemas[name].get("section", "Run Parameters"), []).append(name)
        for section, names in by_section.items():
            self.open_section(section)
            for name in names:
                self._fill_one(name, values[name])

    def _fill_one(self, name: str, value: Any) -> None:
        field, schema = self._field(name), self._schemas[name]
        if schema.get("enum"):
            field.locator("input").first.click()
            self._page.get_by_role("option", name=str(value), exact=True).click()
        elif isinstance(value, bool):
            if field.is_checked() != value:
                field.locator("xpath=..").click()  # the input itself is drawn as one dot
        elif isinstance(value, dict) or (isinstance(value, list) and not all(isinstance(i, str) for i in value)):
            self._write_code(field, json.dumps(value, indent=2))
        else:
            text = "\n".join(value) if isinstance(value, list) else str(value)
            field.fill(text)

    def _field(self, name: str) -> Locator:
        found = self.dialog.locator(f"[id='element_{name}'], [name='element_{name}']").first
        expect(found).to_be_visible()
        return found

    def _write_code(self, field: Locator, text: str) -> None:
        """Pastes into the JSON editor: while one types, it closes brackets by itself."""
        self._page.evaluate("text => navigator.clipboard.writeText(text)", text)
        field.locator(".view-lines").first.click()
        self._page.keyboard.press("ControlOrMeta+a")
        self._page.keyboard.press("ControlOrMeta+v")

    def send(self) -> None:
        """Presses Trigger. The form closes when Airflow has taken it, and shows Airflow's refusal when not."""
        expect(self.button, f"the form of {self._dag_id} cannot be sent").to_be_enabled()
        self.button.click()
        expect(self.dialog.filter(has_text=re.compile("Trigger Dag"))).to_have_count(0)
