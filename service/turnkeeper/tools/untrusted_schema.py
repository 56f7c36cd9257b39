"""Checks the JSON Schemas that callers send, before a model sees them.

An operator's schema is trusted; a caller's is not. It is examined in one pass over its keywords, whose values must be
as the meta-schema of JSON Schema 2020-12 has them: the generic check against that meta-schema takes seconds. References
may lead to other schemas of the same document only.
"""

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from turnkeeper.domain.json_text import UnfitJson, strict_value

MOST_PARTS: Final = 10_000
"""Values in one schema, at most: objects, arrays, texts and numbers."""
_MOST_KNOWN: Final = 1024
"""Schemas whose problems are remembered."""
_PATTERN_CHARACTERS: Final = 1024
"""Characters of regular expressions that are tried, at most; the rest of a schema's expressions is not.

A message has 32 schemas at most: reading all of these expressions takes 50 ms.
"""
_LONGEST_PATTERN: Final = 256
"""Characters of one regular expression that is tried, at most."""


class Holds(Enum):
    """What a keyword holds if it holds schemas."""

    SCHEMA = "a schema"
    LIST = "a list of schemas"
    MAP = "schemas by name"


_HOLDERS: Final[Mapping[str, Holds]] = {
    **dict.fromkeys(
        ("additionalProperties", "propertyNames", "items", "contains", "unevaluatedItems", "unevaluatedProperties"),
        Holds.SCHEMA,
    ),
    **dict.fromkeys(("not", "if", "then", "else", "contentSchema"), Holds.SCHEMA),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), Holds.LIST),
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"), Holds.MAP),
}
_TYPES: Final = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
_COSTLY_OR_ODD = re.compile(r"[^\x00-\x7f]|\\[uUN]|\(\?[aiLmsux-]|\[\[|--|&&|\|\||~~")
"""What may make an expression costly to read, such as flags and ranges beyond ASCII, and what Python warns of."""
_ANCHOR = re.compile(r"[A-Za-z_][-A-Za-z0-9._]*")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)  # type: ignore[operator,call-overload]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _are_names(value: object) -> bool:
    """Returns True for a list of different texts."""
    return isinstance(value, list) and all(map(_is_text, value)) and len(set(value)) == len(value)


def _is_address(value: str) -> bool:
    try:
        urlsplit(value)
    except ValueError:  # brackets that hold no IP address
        return False
    return True


def _is_anchor(value: object) -> bool:
    return isinstance(value, str) and _ANCHOR.fullmatch(value) is not None


def _is_type(value: object) -> bool:
    return bool(value) and _are_names(value) and set(value) <= _TYPES if isinstance(value, list) else value in _TYPES


_FORMS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "type": lambda value: isinstance(value, str | list) and _is_type(value),
    "multipleOf": lambda value: _is_number(value) and value > 0,
    "required": _are_names,
    "dependentRequired": lambda value: isinstance(value, dict) and all(map(_are_names, value.values())),
    "$vocabulary": lambda value: isinstance(value, dict) and all(map(_is_bool, value.values())),
    "$id": lambda value: isinstance(value, str) and "#" not in value[:-1] and _is_address(value),
    **dict.fromkeys(("maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum"), _is_number),
    **dict.fromkeys(("maxLength", "minLength", "maxItems", "minItems", "maxContains", "minContains"), _is_count),
    **dict.fromkeys(("maxProperties", "minProperties"), _is_count),
    **dict.fromkeys(("uniqueItems", "deprecated", "readOnly", "writeOnly"), _is_bool),
    **dict.fromkeys(("title", "description", "format", "contentEncoding", "contentMediaType", "$comment"), _is_text),
    **dict.fromkeys(("$ref", "$dynamicRef", "$recursiveRef", "$schema", "pattern"), _is_text),
    **dict.fromkeys(("$anchor", "$dynamicAnchor", "$recursiveAnchor"), _is_anchor),
    **dict.fromkeys(("enum", "examples"), _is_list),
}
KEYWORDS: Final = frozenset(_HOLDERS) | frozenset(_FORMS)
"""The keywords whose values have a form; any other may have any value."""
_known: dict[bytes, str] = {}
_adding = threading.Lock()


def schema_problem(schema_json: str) -> str:
    """Returns what is wrong with a caller's schema; empty if nothing is."""
    digest = hashlib.sha256(schema_json.encode(errors="replace")).digest()
    problem = _known.get(digest)
    if problem is None:
        problem = _schema_problem(schema_json)
        with _adding:  # lists of tool servers are examined in threads
            if len(_known) >= _MOST_KNOWN:
                del _known[next(iter(_known))]
            _known[digest] = problem
    return problem


def _schema_problem(schema_json: str) -> str:
    try:
        schema = strict_value(schema_json)
    except UnfitJson as unfit:
        return str(unfit)
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return 'must be a JSON object with "type": "object"'
    if _has_more_parts(schema, MOST_PARTS):
        return f"has more than {MOST_PARTS} parts"
    return next(_problems(schema), "")


def _has_more_parts(value: object, most: int) -> bool:
    """Returns True if there are more values in it than `most`."""
    left, parts = most, [value]
    while parts and left >= 0:
        part = parts.pop()
        left -= 1
        if isinstance(part, dict):
            parts.extend(part.values())
        elif isinstance(part, list):
            parts.extend(part)
    return left < 0


def _problems(root: dict[str, Any]) -> Iterator[str]:
    """Yields what is wrong with each schema in the document."""
    schemas = list(_schemas(root))
    rebased = any(path and isinstance(schema, dict) and "$id" in schema for schema, path in schemas)
    characters = 0
    for schema, path in schemas:
        if not isinstance(schema, dict):
            if not isinstance(schema, bool):
                yield _unfit(path)
            continue
        yield from _keyword_problems(root, schema, path, rebased=rebased)
        if isinstance(pattern := schema.get("pattern"), str):
            characters += len(pattern)
            if characters <= _PATTERN_CHARACTERS and not _is_expression(pattern):
                yield _unfit((*path, "pattern"))


def _keyword_problems(root: object, schema: dict[str, Any], path: tuple[str, ...], *, rebased: bool) -> Iterator[str]:
    """Yields what is wrong with the keywords of one schema."""
    for name, value in schema.items():
        if not _fits(name, value):
            yield _unfit((*path, name))
        elif name == "$schema" and path:
            yield f"has $schema in {'/'.join(path)[:200]}; only the whole schema may name its dialect"
        elif name == "patternProperties":
            yield "has patternProperties, which is not supported"
        elif name in ("$ref", "$dynamicRef", "$recursiveRef"):
            yield from _reference_problems(root, name, value, rebased=rebased)


def _schemas(root: object) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Yields every schema of the document with its path, a schema before those in it."""
    left: list[tuple[Any, tuple[str, ...]]] = [(root, ())]
    while left:
        schema, path = left.pop()
        yield schema, path
        if not isinstance(schema, dict):
            continue
        for name, value in schema.items():
            holds = _HOLDERS.get(name)
            if holds is Holds.SCHEMA:
                left.append((value, (*path, name)))
            elif holds is Holds.LIST and isinstance(value, list):
                left.extend((part, (*path, name, str(number))) for number, part in enumerate(value))
            elif holds is Holds.MAP and isinstance(value, dict):
                left.extend((part, (*path, name, key)) for key, part in value.items())


def _fits(name: str, value: object) -> bool:
    """Returns True if the meta-schema lets this keyword have this value; the schemas in it are checked alone."""
    holds = _HOLDERS.get(name)
    if holds is Holds.LIST:
        return isinstance(value, list) and bool(value)
    if holds is Holds.MAP:
        return isinstance(value, dict)
    form = _FORMS.get(name)
    return form is None or form(value)


def _reference_problems(root: object, name: str, reference: str, *, rebased: bool) -> Iterator[str]:
    """Yields a reference to another document, or to a place of this one where no schema is.

    `rebased`: a schema has an `$id`, so that pointers need not begin at the document's root.
    """
    if not reference.startswith("#"):
        yield f"refers to another document; {name} may only begin with #"
    elif reference.startswith("#/") and not rebased and not _is_schema_at(root, reference[2:].split("/")):
        yield f"refers to {reference[:100]}, where it has no schema"


def _is_schema_at(root: object, pointer: list[str]) -> bool:
    """Returns True if the pointer, in its parts, leads to a schema."""
    value: Any = root
    holds: Holds | None = Holds.SCHEMA
    for part in pointer:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        value = _entry(value, key)
        holds = _HOLDERS.get(key) if holds is Holds.SCHEMA else Holds.SCHEMA
        if value is None or holds is None:
            return False
    return holds is Holds.SCHEMA


def _entry(value: object, key: str) -> object:
    """Returns the entry of an object or an array; None if there is none."""
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list) and key.isascii() and key.isdecimal() and len(key) < 6:
        return value[int(key)] if int(key) < len(value) else None
    return None


def _is_expression(pattern: str) -> bool:
    """Returns False for a text that is not a regular expression; True also for one that is not tried."""
    if len(pattern) > _LONGEST_PATTERN or _COSTLY_OR_ODD.search(pattern):
        return True
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _unfit(path: tuple[str, ...]) -> str:
    where = "/".join(path) or "the schema"
    return f"is not a JSON Schema: {where[:200]} does not fit its meta-schema"
