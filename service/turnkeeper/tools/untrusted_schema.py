"""Checks the JSON Schemas that callers send, and arguments against them, at a bounded cost.

An operator's schema is trusted; a caller's is not. References to other documents are refused, regular expressions do
not run, and the comparison of arguments with a schema ends after MOST_STEPS.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, Final

import jsonschema
from jsonschema.exceptions import ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

MOST_STEPS: Final = 50_000
"""Keywords, and entries of keywords, that one comparison evaluates at most: about 0.1 s."""
UNCHECKED: Final = ("pattern", "patternProperties", "uniqueItems", "unevaluatedItems", "unevaluatedProperties")
"""Keywords that the model sees and only the client checks."""

_steps_left: ContextVar[list[int]] = ContextVar("steps left")


class _TooCostly(Exception):
    """The comparison needs more than MOST_STEPS."""


def schema_problem(schema_json: str) -> str:
    """Returns what is wrong with a caller's schema; empty if nothing is."""
    try:
        schema = json.loads(schema_json, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return "is not JSON"
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return 'must be a JSON object with "type": "object"'
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
        return next(_refusals(schema), "")
    except jsonschema.SchemaError as error:
        where = "/".join(str(part) for part in error.absolute_path) or "the schema"
        return f"is not a JSON Schema: {where} does not fit its meta-schema"
    except RecursionError:
        return "is nested too deep"


def arguments_problem(schema: dict[str, Any], arguments: object) -> ValidationError | None:
    """Returns why the arguments do not fit a caller's schema; None if they do."""
    steps_left = _steps_left.set([MOST_STEPS])
    try:
        validator = _Validator(schema, registry=Registry())
        return next(iter(validator.iter_errors(arguments)), None)
    except (_TooCostly, RecursionError):
        return ValidationError("The arguments cannot be compared with the tool's schema in time.")
    except Unresolvable:
        return ValidationError("The tool's schema refers to a part of itself that does not exist.")
    finally:
        _steps_left.reset(steps_left)


def _refuse(token: str) -> object:
    """Raises ValueError for NaN and infinities, which are not JSON."""
    raise ValueError(token)


def _refusals(schema: object) -> Iterator[str]:
    """Yields each reason to refuse a schema that is valid JSON Schema."""
    if isinstance(schema, list):
        for item in schema:
            yield from _refusals(item)
    elif isinstance(schema, dict):
        for name, value in schema.items():
            if name in ("$ref", "$dynamicRef") and isinstance(value, str) and not value.startswith("#"):
                yield f"refers to another document; {name} may only begin with #"
            if name == "patternProperties":
                yield "has patternProperties, which is not supported"
            yield from _refusals(value)


_Keyword = Callable[..., Iterable[ValidationError] | None]


def _counted(keyword: _Keyword) -> _Keyword:
    """Returns a check of the keyword that also counts its steps, and raises _TooCostly after MOST_STEPS."""

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        steps_left = _steps_left.get()
        steps_left[0] -= 1 + (len(value) if isinstance(value, list | dict) else 0)
        if steps_left[0] < 0:
            raise _TooCostly
        yield from keyword(validator, value, instance, schema) or ()

    return check


def _accepted(_validator: Any, _value: Any, _instance: Any, _schema: Any) -> Iterator[ValidationError]:
    """Accepts any value: the check of an UNCHECKED keyword."""
    yield from ()


_Validator: Any = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator,
    {
        name: _accepted if name in UNCHECKED else _counted(keyword)
        for name, keyword in jsonschema.Draft202012Validator.VALIDATORS.items()
    },
)
