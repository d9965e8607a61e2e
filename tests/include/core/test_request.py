"""Requests: the form, the check that tells everything at once, and the documentation, from one model."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

import pydantic
import pytest

from include.core.errors import RequestError
from include.core.request import BULKY, Request, asked_of, bulky_fields, described, in_section, load, param_schemas
from include.core.text import bare_uri, is_bare_uri, printable
from include.icav2.models import CopyRequest
from include.plates.request import BackupRequest


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Part(pydantic.BaseModel):
    size: int = pydantic.Field(ge=1)


class Order(Request):
    name: str = pydantic.Field(description="Who asks.", pattern="^[a-z]+$")
    colour: Annotated[Colour, pydantic.Strict(False)] = pydantic.Field(Colour.RED, description="Which one.")
    parts: list[Part] = pydantic.Field(default_factory=list, description="What of.")
    note: str | None = pydantic.Field(None, description="Anything.")
    kind: Literal["big", "small"] | None = pydantic.Field(None, description="How large.")
    count: int | str = pydantic.Field(1, description="How many.")
    weight: float = pydantic.Field(1.0, description="How heavy.")
    fast: bool = pydantic.Field(False, description="How soon.")

    @pydantic.field_validator("note")
    @classmethod
    def _polite(cls, value: str | None) -> str | None:
        if value == "now!":
            raise ValueError("“now!” is refused: ask politely")
        return value

    @classmethod
    def cross_field_errors(cls, conf: Mapping[str, Any]) -> list[str]:
        return ["give a note with big orders"] if conf.get("kind") == "big" and not conf.get("note") else []


def problems(**conf: Any) -> list[str]:
    with pytest.raises(RequestError) as caught:
        load(Order, conf)
    return caught.value.problems


def test_a_good_conf_becomes_a_request_that_does_not_change():
    order = load(Order, {"name": "ann", "parts": [{"size": 2}]})
    assert order.parts[0].size == 2
    with pytest.raises(pydantic.ValidationError):
        order.name = "bob"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"), [("weight", "5"), ("weight", True), ("fast", "yes"), ("fast", 1), ("name", 5)]
)
def test_what_airflow_s_form_refuses_is_refused_here_too(field: str, value: Any):
    assert problems(**{"name": "ann", field: value})[0].startswith(f"{field}: ")


def test_an_enum_and_a_whole_number_are_taken_as_json_writes_them():
    order = load(Order, {"name": "ann", "colour": "blue", "weight": 3})
    assert (order.colour, order.weight) == (Colour.BLUE, 3.0)


def test_all_problems_are_told_at_once_each_with_field_value_and_remedy():
    found = problems(name="Ann", colour="green", parts=[{"size": 0}, {}], note="now!", kind="big", speed=3)
    assert len(found) == 6
    by_field = {problem.split(":")[0]: problem for problem in found}
    assert set(by_field) == {"name", "colour", "parts.0.size", "parts.1.size", "note", "speed"}
    assert "“Ann”" in by_field["name"]
    assert by_field["note"] == "note: “now!” is refused: ask politely"
    assert (
        "take it out, or correct its name (known: name, colour, parts, note, kind, count, weight, fast)"
        in by_field["speed"]
    )


def test_faults_between_fields_are_told_together_with_those_of_fields():
    assert problems(name="ann", kind="big") == ["give a note with big orders"]
    assert len(problems(name="Ann", kind="big")) == 2
    with pytest.raises(pydantic.ValidationError):
        Order(name="ann", kind="big")


def test_no_conf_is_an_empty_one():
    with pytest.raises(RequestError, match=r"^name: this field is required; give it a value$"):
        load(Order, None)


def test_a_validator_of_the_whole_model_is_heard_too():
    class Odd(Request):
        a: int = 1

        @pydantic.model_validator(mode="after")
        def _odd(self) -> Odd:
            if self.a % 2 == 0:
                raise ValueError("a must be odd: add one")
            return self

    with pytest.raises(RequestError, match=r"^a must be odd: add one$"):
        load(Odd, {"a": 2})


def test_the_form_has_one_flat_schema_per_field():
    schemas = param_schemas(Order)
    assert "$ref" not in str(schemas) and "$defs" not in str(schemas)
    assert schemas["name"]["default"] is None
    assert (schemas["name"]["type"], schemas["name"]["pattern"]) == ("string", "^[a-z]+$")
    colour = schemas["colour"]
    assert (colour["type"], colour["enum"], colour["default"]) == (["string", "null"], ["red", "blue", None], "red")
    assert (schemas["note"]["type"], schemas["note"]["default"]) == (["string", "null"], None)
    assert (schemas["kind"]["type"], schemas["kind"]["enum"]) == (["string", "null"], ["big", "small", None])
    assert schemas["parts"]["items"]["properties"]["size"]["minimum"] == 1
    assert schemas["parts"]["default"] == []
    assert {"type": "null"} in schemas["count"]["anyOf"]
    assert all(schema["description_md"] for schema in schemas.values())


class Form(Request):
    needed: str = pydantic.Field(title="Needed", description="In a line: `a_b` and *_c_*.")
    text: str = pydantic.Field("", title="Text", description="Text.", examples=["a_{b}_c"])
    number: int = pydantic.Field(5, ge=1, title="Number (GiB)", description="Number.")
    lines: list[str] = pydantic.Field(default=[], title="Lines", description="Lines.", examples=[["one", "two"]])
    rows: list[Part] | None = pydantic.Field(
        None, title="Rows", description="Rows.", examples=[[{"size": 1}, {"size": 2}]]
    )
    tree: dict[str, int] | None = pydantic.Field(
        None, title="Tree", description="Tree.", examples=[{"a": 1}], json_schema_extra=BULKY | in_section("Rare")
    )


def test_a_field_with_a_default_may_be_left_empty_in_the_form():
    """The form blocks its button, without a word, for a string field whose default is "" (docs/protocols/airflow.md 4.3)."""
    schemas = param_schemas(Form)
    assert schemas["needed"]["type"] == "string"
    for name in Form.model_fields.keys() - {"needed"}:
        assert "null" in schemas[name]["type"], name
        assert schemas[name]["default"] != ""


def test_null_and_empty_lines_are_what_the_form_sends_for_nothing():
    nothing = dict.fromkeys(Form.model_fields) | {"needed": "x"}
    assert load(Form, nothing) == load(Form, {"needed": "x"}) == Form.model_validate(nothing)
    assert load(Form, {"needed": "x", "lines": ["a", "", "b", ""]}).lines == ["a", "b"]
    with pytest.raises(RequestError, match=r"^needed: this field is required; give it a value$"):
        load(Form, nothing | {"needed": None})


def test_an_empty_text_is_not_given_where_the_default_is_empty_and_refused_elsewhere():
    assert load(Form, {"needed": "x", "text": ""}) == load(Form, {"needed": "x"})
    for conf in ({"number": ""}, {"lines": ""}, {"rows": ""}, {"tree": ""}, {"needed": 5}):
        with pytest.raises(RequestError, match=f"^{next(iter(conf))}: "):
            load(Form, {"needed": "x"} | conf)
    with pytest.raises(RequestError, match=r"^bucket: “” is refused"):
        load(BackupRequest, {"project": "p", "batch": "b", "plates_uri": "file:///x", "bucket": ""})


def test_a_whole_number_may_be_written_with_a_point():
    assert repr(load(Form, {"needed": "x", "number": 5.0}).number) == "5"
    for value in (5.5, float("inf"), float("nan")):
        with pytest.raises(RequestError, match=r"^number: "):
            load(Form, {"needed": "x", "number": value})


def test_a_name_that_is_no_unicode_is_told_by_its_name_and_hides_nothing():
    found = problems(**{"name": "Ann", "\ud800": 1, "": 2, "weight": "x"})
    assert [problem.split(":")[0] for problem in found] == ["name", "weight", "\\ud800", "“”"]
    assert all("this field is not known" in problem for problem in found[2:])


def test_the_known_names_are_those_of_the_place():
    class Strict(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")

    class Whole(Request):
        inner: Strict | None = None

    with pytest.raises(RequestError) as caught:
        load(Whole, {"inner": {"x": 1}, "y": 1})
    assert [p.partition("correct its name")[2] for p in caught.value.problems] == ["", " (known: inner)"]


def test_title_section_and_example_come_from_the_one_declaration():
    schemas = param_schemas(Form)
    assert (schemas["number"]["title"], schemas["tree"]["section"]) == ("Number (GiB)", "Rare")
    assert "section" not in schemas["number"]
    assert not {"examples", "bulky", "description"} & {key for schema in schemas.values() for key in schema}
    told = {name: schema["description_md"] for name, schema in schemas.items()}
    assert told["needed"] == r"In a line: a_b and \*\_c\_\*."
    assert told["text"] == r"Text." + "\n\n" + r"Example: a\_{b}\_c"
    assert told["lines"].endswith("Example, one per line:\n\n```text\none\ntwo\n```")
    assert told["rows"].endswith('```json\n[\n  {"size": 1},\n  {"size": 2}\n]\n```')
    assert told["tree"].endswith('```json\n{\n  "a": 1\n}\n```')
    assert bulky_fields(Form) == {"tree"}


class Nightly(Request):
    count: int = pydantic.Field(3, description="How many.")


@pytest.mark.parametrize("conf", [None, {}, {"count": None}])
def test_a_scheduled_run_has_an_empty_conf_and_takes_every_default(conf: dict[str, Any] | None):
    assert load(Nightly, conf) == Nightly(count=3)


@pytest.mark.parametrize("model", [Order, CopyRequest])
def test_every_default_of_the_form_fits_its_own_schema(model):
    import jsonschema

    for name, schema in param_schemas(model).items():
        if not model.model_fields[name].is_required():
            jsonschema.validate(schema["default"], {k: v for k, v in schema.items() if k != "default"})


def test_the_documentation_names_type_limits_default_and_meaning_of_each_field():
    rows = {row["field"]: row for row in described(CopyRequest)}
    assert set(rows) == set(CopyRequest.model_fields)
    assert rows["max_in_flight"] == {
        "field": "max_in_flight",
        "title": "Copy jobs at once",
        "type": "integer (minimum 1; maximum 2000)",
        "default": "`200`",
        "description": "How many copy jobs may run at once.",
    }
    assert rows["manifest"]["default"] == "none"
    assert {r["field"]: r["type"] for r in described(Order)}["kind"] == "string (one of big, small)"
    assert {r["field"]: r["default"] for r in described(Order)}["name"] == "required"
    assert rows["same_project"]["type"] == "string (one of refuse, allow)"
    assert all(row["description"] for row in rows.values())


def test_a_value_in_a_message_is_quoted_cut_and_harmless():
    assert printable("plain é 日本") == "“plain é 日本”"
    assert printable({"a": 1}) == '“{"a": 1}”'
    assert printable("a\nb\x1b[2K\u202e\ud800").isprintable()
    long = printable("start" + "x" * 5000 + "end")
    assert len(long) < 700
    assert long.startswith("“start") and long.endswith("end”")


@pytest.mark.parametrize(
    ("uri", "fine", "bare"),
    [
        ("s3://bucket/a b@c.json", True, "s3://bucket/a b@c.json"),
        ("file:///srv/m.json", True, "file:///srv/m.json"),
        ("s3://u:secret@b/m", False, "s3://b/m"),
        ("s3://b/m?sig=secret", False, "s3://b/m"),
        ("s3://b/m#secret", False, "s3://b/m"),
        ("/srv/m.json", False, "/srv/m.json"),
        ("s3://[secret/m", False, "this URI"),
    ],
)
def test_a_uri_is_plain_or_told_without_what_may_be_secret(uri, fine, bare):
    assert is_bare_uri(uri) is fine
    assert bare_uri(uri) == bare


class Shelf(Request):
    """A model with a field that bears a bulky field's name elsewhere, and is none."""

    manifest: str = "short"
    pages: list[str] = pydantic.Field(default=[], json_schema_extra=BULKY)


def test_what_is_bulky_is_declared_by_the_model_and_not_known_by_its_name():
    assert bulky_fields(Shelf) == {"pages"}
    assert asked_of(Shelf, {"manifest": "m", "pages": ["p"]}) == {"manifest": "m"}
    assert asked_of(Shelf, {"typo": 1}) == {}
