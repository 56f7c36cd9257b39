"""Compares a call's arguments with its tool's schema, at a bounded cost.

The arguments are a model's, so any of them may be meant to cost much. A comparison counts its steps. Regular
expressions are matched in linear time, or not at all for a client's schema. A `$schema` inside the schema changes
nothing: it would choose a validator that counts no steps.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final

import jsonschema
from jsonschema.exceptions import ValidationError
from pydantic_core import SchemaError, SchemaValidator, core_schema
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from turnkeeper.isolation import ends_process

MOST_STEPS: Final = 50_000
"""Keywords, and entries of keywords, that one comparison evaluates at most: about 0.2 s."""
UNCHECKED: Final = ("pattern", "patternProperties", "uniqueItems", "unevaluatedItems", "unevaluatedProperties")
"""Keywords of a client's schema that the model sees and only the client checks."""
_PER_ENTRY: Final = frozenset(
    {"items", "contains", "propertyNames", "additionalProperties", "patternProperties", "uniqueItems"}
)
"""Keywords that look at each entry of the compared array or object, with or without a keyword for the entry."""
_QUOTED: Final = frozenset({"const", "enum", "not", "pattern", "$ref", "$dynamicRef"})
"""Keywords whose own value is read whole, and quoted whole in a complaint."""
_STEP_SIZE: Final = 256
"""Characters and entries of the compared value that count as a step: each complaint quotes the whole value."""
_COMPARED: Final = 32
"""How much more a part costs that is compared than one that is quoted."""
_FRAMES: Final[Mapping[str, int]] = {"if": 4, "not": 4, "contains": 5, "oneOf": 5}
"""Frames of Python's stack that a keyword takes while those in it are evaluated; 3 for any other."""
_MOST_FRAMES: Final = 800
"""Frames that one comparison takes; Python has 1,000. Libraries in Rust may panic beyond, not raise an Exception.

A chain of optional parts as deep as JSON may be takes 576.
"""

Keyword = Callable[..., Iterable[ValidationError] | None]


class TooCostly(Exception):
    """The comparison needs more steps than it has, or more frames than there may be."""


class Steps:
    """The steps that are left to one or several comparisons."""

    def __init__(self, most: int = MOST_STEPS) -> None:
        self._left = most
        self._sizes: dict[int, int] = {}
        self._schema_sizes: Mapping[int, int] = {}
        self.frames = 0
        """Frames of the keywords that are being evaluated inside each other."""

    def begin(self, arguments: object, schema_sizes: Mapping[int, int]) -> None:
        """Measures the arguments of the next comparison. `schema_sizes` are those of the schema's own parts."""
        self._sizes, self._schema_sizes, self.frames = {}, schema_sizes, 0
        _measure(arguments, self._sizes)

    def spend(self, name: str, value: object, instance: object) -> None:
        """Counts the steps of a keyword with this value on this part of the arguments. Raises TooCostly at the end."""
        size = _size(instance, self._sizes) + (_size(value, self._schema_sizes) if name in _QUOTED else 0)
        if name in ("const", "enum") and isinstance(instance, list | dict):  # compared part by part, in Python
            size += _COMPARED * min(_size(instance, self._sizes), _size(value, self._schema_sizes))
        self._left -= 1 + _entries(value) + size // _STEP_SIZE + (_entries(instance) if name in _PER_ENTRY else 0)
        if self._left < 0 or self.frames > _MOST_FRAMES:
            raise TooCostly


_steps: ContextVar[Steps] = ContextVar("steps")


class ArgumentsSchema:
    """A tool's schema, ready for any number of comparisons."""

    def __init__(self, schema: Any, *, is_trusted: bool) -> None:
        """`is_trusted`: the schema is the operator's."""
        self._schema = schema
        self._is_trusted = is_trusted
        self._validator: Any = None
        self._sizes: dict[int, int] = {}

    def problem(self, arguments: object, *, steps: Steps | None = None) -> ValidationError | None:
        """Returns why the arguments do not fit; None if they do. Raises nothing, whatever the schema is.

        `steps` are taken from those that several comparisons share.
        """
        steps = steps or Steps()
        token = _steps.set(steps)
        try:
            if self._validator is None:
                self._prepare()
            steps.begin(arguments, self._sizes)
            return next(iter(self._validator.iter_errors(arguments)), None)
        except (TooCostly, RecursionError):
            return ValidationError("The arguments cannot be compared with the tool's schema in time.")
        except Unresolvable:
            return ValidationError("The tool's schema refers to a part of itself that is not there.")
        except BaseException as error:  # a schema that cannot be evaluated is its author's failure, also by a panic
            if ends_process(error):
                raise
            return ValidationError(f"The arguments cannot be compared with the tool's schema ({type(error).__name__}).")
        finally:
            _steps.reset(token)

    def _prepare(self) -> None:
        """Finds all anchors at once: otherwise each reference to one would search the whole schema."""
        root = DRAFT202012.create_resource(self._schema)
        uri = root.id() or ""
        resolver = Registry().with_resource(uri, root).crawl().resolver(base_uri=uri)
        _measure(self._schema, self._sizes)
        self._validator = (_Trusted if self._is_trusted else _Untrusted)(self._schema, _resolver=resolver)


def _measure(value: object, sizes: dict[int, int]) -> int:
    """Returns the characters and entries of a value; notes those of each array and object by its id."""
    if isinstance(value, str):
        return 1 + len(value)
    if isinstance(value, dict):
        size = 1 + sum(len(name) + _measure(part, sizes) for name, part in value.items())
    elif isinstance(value, list):
        size = 1 + sum(_measure(part, sizes) for part in value)
    else:
        return 1
    sizes[id(value)] = size
    return size


def _size(value: object, sizes: Mapping[int, int]) -> int:
    """Returns the characters and entries of a value that was measured."""
    return len(value) if isinstance(value, str) else sizes.get(id(value), 0)


def _entries(value: object) -> int:
    return len(value) if isinstance(value, list | dict) else 0


def _counted(name: str, keyword: Keyword) -> Keyword:
    """Returns the keyword's check, which also counts its steps. It raises TooCostly when none is left."""
    frames = _FRAMES.get(name, 3)

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        steps = _steps.get()
        steps.spend(name, value, instance)
        before = steps.frames
        steps.frames = before + frames
        try:
            yield from keyword(validator, value, instance, schema) or ()
        finally:
            steps.frames = before

    return check


def _evolve(validator: Any, **changes: Any) -> Any:
    """Returns the same validator for another part of the schema. The library's own method obeys `$schema`."""
    kept = {"schema": validator.schema, "_resolver": validator._resolver}  # noqa: SLF001 - as the method that it replaces
    return type(validator)(**{**kept, **changes})


def _passed(_validator: Any, _value: Any, _instance: Any, _schema: Any) -> Iterator[ValidationError]:
    """Accepts any value: the check of an UNCHECKED keyword."""
    yield from ()


def _pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _matches(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], instance: Any, _schema: Any
) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    for pattern, schema in patterns.items():
        for name, part in instance.items():
            if _matches(pattern, name):
                yield from validator.descend(part, schema, path=name, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    patterns = schema.get("patternProperties", {})
    if not patterns or not isinstance(instance, dict):
        yield from _STANDARD["additionalProperties"](validator, allowed, instance, schema) or ()
        return
    known = schema.get("properties", {})
    others = [name for name in instance if name not in known and not any(_matches(one, name) for one in patterns)]
    for name in others:
        if allowed is False:
            yield ValidationError(f"{name!r} does not match any of the patterns of patternProperties")
        elif allowed is not True:
            yield from validator.descend(instance[name], allowed, path=name)


def _unique_items(_validator: Any, unique: Any, instance: Any, _schema: Any) -> Iterator[ValidationError]:
    if unique and isinstance(instance, list) and len({_frozen(item) for item in instance}) < len(instance):
        yield ValidationError(f"{instance!r} has non-unique elements")


def _frozen(value: Any) -> Any:
    """Returns a hashable value that is equal for equal JSON: 1 and 1.0 are equal, 1 and true are not."""
    if isinstance(value, dict):
        return ("object", frozenset((name, _frozen(part)) for name, part in value.items()))
    if isinstance(value, list):
        return ("array", *map(_frozen, value))
    return ("value", value) if isinstance(value, bool) else value


def _matches(pattern: str, text: str) -> bool:
    """Returns True if the regular expression matches somewhere in the text, or is one that nothing here can read."""
    matcher = _matcher(pattern)
    return matcher is None or matcher.isinstance_python(text)


@lru_cache(maxsize=256)
def _matcher(pattern: str) -> SchemaValidator | None:
    """Returns a matcher that takes linear time; None for an expression that needs another one, such as a lookahead."""
    try:
        return SchemaValidator(core_schema.str_schema(pattern=pattern))
    except SchemaError:
        return None


_STANDARD: Final[Mapping[str, Keyword]] = jsonschema.Draft202012Validator.VALIDATORS
_LINEAR: Final[Mapping[str, Keyword]] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "uniqueItems": _unique_items,
}
_Trusted: Any = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator,
    {name: _counted(name, _LINEAR.get(name, keyword)) for name, keyword in _STANDARD.items()},
)
_Untrusted: Any = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    _Trusted, dict.fromkeys(UNCHECKED, _passed)
)
for _validator_class in (_Trusted, _Untrusted):
    _validator_class.evolve = _evolve
