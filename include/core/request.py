"""What a caller may ask for: one pydantic model per DAG is form, check, and documentation.

Invariant: the strict check of the whole runs again in the first task, and by `python -m include.<system> plan` without
Airflow, since Airflow checks each parameter alone and lets unknown keys pass (docs/protocols/airflow.md 4.1, 4.2).
"""

from __future__ import annotations

import json
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


class Request(pydantic.BaseModel):
    """Base of all requests: unknown keys are refused, values do not change afterwards.

    Strict, as Airflow's own form: "5" is no number, and true no 1. An enum's field says `pydantic.Strict(False)`.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def cross_field_errors(cls, conf: Mapping[str, Any]) -> list[str]:
        """What is wrong between the fields, one sentence each. Asked also when single fields are wrong, so that a caller
        learns everything at once: `conf` is as it was given."""
        return []

    @pydantic.model_validator(mode="after")
    def _whole(self) -> Self:
        faults = self.cross_field_errors({name: getattr(self, name) for name in self.model_fields_set})
        if faults:
            raise ValueError("; ".join(faults))
        return self


R = TypeVar("R", bound=Request)


def load(model: type[R], conf: Mapping[str, Any] | None) -> R:
    """The checked request. Raises RequestError with every problem found: field, value, remedy."""
    given = dict(conf or {})
    try:
        return model.model_validate(given)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False)
    of_whole = model.cross_field_errors(given) or [_problem(model, e) for e in found if not e["loc"]]
    raise RequestError([_problem(model, e) for e in found if e["loc"]] + of_whole)


def _problem(model: type[Request], error: Any) -> str:
    place = printable(".".join(str(part) for part in error["loc"]), quotes=False)
    if error["type"] == "extra_forbidden":
        known = ", ".join(model.model_fields)
        return f"{place}: this field is not known; take it out, or correct its name (known: {known})"
    if error["type"] == "value_error":  # our own validators: they name value and remedy themselves
        return f"{place}: {error['ctx']['error']}" if error["loc"] else str(error["ctx"]["error"])
    return f"{place}: {printable(error.get('input'))} is refused: {error['msg']}"


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
    """One flat JSON schema per field, as Airflow's form wants it: no `$ref`, nullable as `type: [T, "null"]`.

    Each holds `default` and `description`; the rest are JSON schema keywords.
    """
    whole = model.model_json_schema()
    definitions = whole.get("$defs", {})
    schemas = {}
    for name, field in model.model_fields.items():
        schema = _flat(whole["properties"][name], definitions)
        schema.pop("bulky", None)  # ours, not a keyword of JSON schema
        schema["default"] = None if field.is_required() else field.get_default(call_default_factory=True)
        schema.setdefault("description", field.description or "")
        schemas[name] = schema
    return schemas


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
        flat |= {**real[0], "type": [real[0]["type"], "null"]}
        if "enum" in flat:
            flat["enum"] = [*flat["enum"], None]  # else the form would refuse the very null that the type allows
    return flat


LIMITS = {"minimum": "minimum", "exclusiveMinimum": "more than", "maximum": "maximum", "pattern": "pattern"}


def described(model: type[Request]) -> list[dict[str, str]]:
    """Rows (field, type, default, description) for the documentation, from the same source as the form."""
    rows = []
    for name, schema in param_schemas(model).items():
        kind = schema.get("type", "object")
        limits = [f"{word} {schema[key]}" for key, word in LIMITS.items() if key in schema]
        values = [str(v) for v in schema.get("enum", []) if v is not None]
        kind_text = " or ".join(kind) if isinstance(kind, list) else str(kind)
        extra = "; ".join(limits + ([f"one of {', '.join(values)}"] if values else []))
        default = json.dumps(schema["default"])
        rows.append(
            {
                "field": name,
                "type": f"{kind_text} ({extra})" if extra else kind_text,
                "default": default,
                "description": schema["description"],
            }
        )
    return rows
