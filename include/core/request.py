"""What a caller may ask for: one pydantic model per DAG is form, check, and documentation.

A field is declared once, in pydantic's own words: `title` (what the form calls it), `description` (one paragraph of
Markdown), `examples` (the first one is shown), limits, and `json_schema_extra=in_section("…")` for what few people need.

Invariant: the strict check of the whole runs again in the first task, and by `python -m include.<system> plan` without
Airflow, since Airflow checks each parameter alone and lets unknown keys pass (docs/protocols/airflow.md 4.1, 4.2).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self, TypeVar

import pydantic

from include.core.errors import RequestError
from include.core.text import printable

XCOM_LIMIT_BYTES = 48 * 1024  # documents up to this size travel in XCom; larger ones by URI and sha256
BULKY: dict[str, Any] = {"bulky": True}

DEADLINE_DAYS = 7.0
# Of a process that waits for a remote: the field `deadline_days: DeadlineDays = DEADLINE_DAYS` (see triggers.leg).
DeadlineDays = Annotated[
    float,
    pydantic.Field(
        gt=0,
        le=90,
        title="Time limit of the run (days)",
        description="Counted from the begin of the run. Then nothing more is sent, and the run ends: its receipt says what is "
        "still open.",
    ),
]

# Airflow's form keeps a field's last valid value, null at first, while its text is not valid JSON. Nothing in a schema stops it.
LOST_IN_FORM = (
    "if you pasted text into the form's field, it was not valid JSON and the form dropped it: paste it again, and trigger only "
    "when no red text stands below the field"
)
# For the description of every field whose text is JSON.
PASTED = "Trigger only when no red text stands below the field: text that is not valid JSON is dropped by the form."
_FIELDS_ALONE = object()  # as a validation's context: the rules between the fields are left out


def in_section(title: str) -> dict[str, Any]:
    """A field's `json_schema_extra`: the form shows it in a part of that title, closed at first."""
    return {"section": title}


class Request(pydantic.BaseModel):
    """Base of all requests: unknown keys are refused, values do not change afterwards.

    Strict, as Airflow's own form: "5" is no number, and true no 1; 5.0 is the whole number 5, as JSON has it. An enum's field
    says `pydantic.Strict(False)`. What the form sends for a field that was left empty counts as not given: see `filled_in`.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _filled_in(cls, conf: Any) -> Any:
        return filled_in(cls, conf) if isinstance(conf, Mapping) else conf

    @classmethod
    def cross_field_errors(cls, conf: Mapping[str, Any]) -> list[str]:
        """What is wrong between the fields, one sentence each. Asked also when single fields are wrong, so that a caller
        learns everything at once: `conf` is as it was given."""
        return []

    @pydantic.model_validator(mode="after")
    def _whole(self, info: pydantic.ValidationInfo) -> Self:
        if info.context is _FIELDS_ALONE:
            return self
        faults = self.cross_field_errors({name: getattr(self, name) for name in self.model_fields_set})
        if faults:
            raise ValueError("; ".join(faults))
        return self


R = TypeVar("R", bound=Request)


def filled_in(model: type[Request], conf: Mapping[str, Any]) -> dict[str, Any]:
    """What a conf says, without what the form sends for nothing: null in an optional field, "" in a text that is empty without
    a value, and an empty line of a list. A whole number may be written as 5.0."""
    given = {}
    for name, value in conf.items():
        field = model.model_fields.get(name)
        if field is not None and _says_nothing(field, value):
            continue
        if isinstance(value, list):
            value = [item for item in value if item != ""]
        elif field is not None and field.annotation is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        given[name] = value
    return given


def _says_nothing(field: Any, value: Any) -> bool:
    if field.is_required():
        return False
    # "" never stands for a default that is something, as a bucket's name; and the form sends it for texts alone.
    empty_text = field.annotation in (str, str | None) and field.get_default(call_default_factory=True) in (None, "")
    return value is None or (value == "" and empty_text)


def load(model: type[R], conf: Mapping[str, Any] | None) -> R:
    """The checked request. Raises RequestError with every problem found: field, value, remedy."""
    given = filled_in(model, conf or {})
    # Told by ourselves: a name that is no valid Unicode would end the check of all others.
    strange = [name for name in given if name not in model.model_fields]
    try:
        request = model.model_validate({name: value for name, value in given.items() if name not in strange})
        if not strange:
            return request
        found = []
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False)
    known = ", ".join(model.model_fields)
    of_fields = [_problem(e) for e in found if e["loc"]] + [_unknown(name, f" (known: {known})") for name in strange]
    raise RequestError(of_fields + (model.cross_field_errors(given) or [_problem(e) for e in found if not e["loc"]]))


def _unknown(name: str, known: str = "") -> str:
    shown = printable(name, quotes=not name.strip())
    return f"{shown}: this field is not known; take it out, or correct its name{known}"


def _problem(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    place = printable(path, quotes=False)
    if error["type"] == "extra_forbidden":
        return _unknown(path)
    if error["type"] == "missing" or (error.get("input") is None and len(error["loc"]) == 1):
        return f"{place}: this field is required; give it a value"
    if error["type"] == "value_error":  # our own validators: they name value and remedy themselves
        return f"{place}: {error['ctx']['error']}" if error["loc"] else str(error["ctx"]["error"])
    return f"{place}: {printable(error.get('input'))} is refused: {error['msg']}"


def load_without_faults(model: type[R], conf: Mapping[str, Any], problems: Sequence[str]) -> R | None:
    """The request as if its faulty fields (by what `load` said) were not there, so that the rest can be checked too; None if it
    cannot be. For a required field its example stands in. The rules between the fields may be broken: whoever checks it says
    nothing of what is not there."""
    known = {name: value for name, value in filled_in(model, conf).items() if name in model.model_fields}
    fine = {n: v for n, v in known.items() if not any(p.startswith((f"{n}:", f"{n}.")) for p in problems)}
    fine = {n: f.examples[0] for n, f in model.model_fields.items() if f.is_required() and f.examples} | fine
    try:
        return model.model_validate(fine, context=_FIELDS_ALONE)
    except pydantic.ValidationError:  # a required field without an example is among them
        return None


def bulky_fields(model: type[Request]) -> set[str]:
    """The fields that may be too large for XCom: those declared with `json_schema_extra=BULKY`."""
    extras = {name: field.json_schema_extra for name, field in model.model_fields.items()}
    return {name for name, extra in extras.items() if isinstance(extra, dict) and extra.get("bulky")}


def asked_of(model: type[R], conf: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a receipt says was asked for: the request with its defaults and without its bulky fields; empty where refused."""
    try:
        return load(model, conf).model_dump(mode="json", exclude=bulky_fields(model))
    except RequestError:
        return {}


def truncate_for_xcom(lines: Sequence[str]) -> list[str]:
    """As many of these lines as XCom may hold; the last one says how many more there are."""
    left = XCOM_LIMIT_BYTES - 200
    kept: list[str] = []
    for line in lines:
        left -= len(json.dumps(line)) + 2
        if left < 0:
            return [*kept, f"and {len(lines) - len(kept)} more: see the log"]
        kept.append(line)
    return kept


def param_schemas(model: type[Request]) -> dict[str, dict[str, Any]]:
    """One flat JSON schema per field, as Airflow's form wants it (docs/protocols/airflow.md 4.3): no `$ref`, and every field
    with a default nullable, since the form asks for all others and blocks its button without a word while one is empty.

    Each holds `default`, `title` and `description_md` (with the first example); the rest are JSON schema keywords.
    """
    whole = model.model_json_schema()
    definitions = whole.get("$defs", {})
    schemas = {}
    for name, field in model.model_fields.items():
        schema = _flat(whole["properties"][name], definitions)
        # Ours, or with another meaning in the form: it offers `examples` as the only choices of a list.
        for key in ("bulky", "examples", "description", "default"):
            schema.pop(key, None)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        schema["default"] = None if default == "" else default  # the form takes "" for a value that is missing
        schema["description_md"] = described_field(field)
        schemas[name] = schema if field.is_required() else _nullable(schema)
    return schemas


def described_field(field: Any) -> str:
    """A field's description for the form, and its first example in a second paragraph. No code within a line: the form draws
    it over the line above."""
    paragraphs = [_plain(field.description or "")]
    for example in (field.examples or [])[:1]:
        if isinstance(example, list) and all(isinstance(line, str) for line in example):
            paragraphs += ["Example, one per line:", "```text\n" + "\n".join(example) + "\n```"]
        elif isinstance(example, list):
            paragraphs += ["Example:", "```json\n[\n  " + ",\n  ".join(json.dumps(row) for row in example) + "\n]\n```"]
        elif isinstance(example, dict):
            paragraphs += ["Example:", f"```json\n{json.dumps(example, indent=2)}\n```"]
        else:
            paragraphs.append(f"Example: {_plain(str(example))}")
    return "\n\n".join(paragraphs)


def _plain(markdown: str) -> str:
    """The text without code marks, and with nothing in it that Markdown could take for emphasis."""
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|[*<\[]", r"\\\g<0>", markdown.replace("`", ""))


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in schema:
        null = {"type": "null"}
        return schema | ({} if null in schema["anyOf"] else {"anyOf": [*schema["anyOf"], null]})
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if "null" in kinds:
        return schema
    # An enum without null would refuse the very null that the type allows.
    return schema | {"type": [*kinds, "null"]} | ({"enum": [*schema["enum"], None]} if "enum" in schema else {})


def _flat(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """Resolves `$ref` and folds `anyOf [T, null]` into a list of types."""
    if isinstance(schema, list):
        return [_flat(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        target = definitions[schema["$ref"].rsplit("/", 1)[-1]]
        return _flat({**target, **{k: v for k, v in schema.items() if k != "$ref"}}, definitions)
    flat = {key: _flat(value, definitions) for key, value in schema.items()}
    choices = flat.get("anyOf", [])
    real = [c for c in choices if c.get("type") != "null"]
    if len(choices) == 2 and len(real) == 1:
        del flat["anyOf"]
        flat |= _nullable(real[0])
    return flat


LIMITS = {"minimum": "minimum", "exclusiveMinimum": "more than", "maximum": "maximum", "pattern": "pattern"}


def described(model: type[Request]) -> list[dict[str, str]]:
    """Rows (field, title, type, default, description) for the documentation, from the same source as the form."""
    rows = []
    for name, schema in param_schemas(model).items():
        field = model.model_fields[name]
        kind = schema.get("type", "any")
        limits = [f"{word} {schema[key]}" for key, word in LIMITS.items() if key in schema]
        values = [str(v) for v in schema.get("enum", []) if v is not None]
        kind_text = " or ".join(k for k in ([kind] if isinstance(kind, str) else kind) if k != "null")
        extra = "; ".join(limits + ([f"one of {', '.join(values)}"] if values else []))
        default = "required" if field.is_required() else f"`{json.dumps(schema['default'])}`"
        rows.append(
            {
                "field": name,
                "title": field.title or name,
                "type": f"{kind_text} ({extra})" if extra else kind_text,
                "default": "none" if default in ("`null`", "`[]`") else default,
                "description": field.description or "",
            }
        )
    return rows
