"""BSON documents ↔ frozen dataclasses, by field names and type hints: the one place that converts values.

Enums are their values, durations whole milliseconds, tuples arrays; a mapping is an array of `{k, v}`, because BSON
keys cannot hold every text. Times have the database's precision, a millisecond, and are UTC. Decoding ignores
unknown fields and takes the default of a missing one, so that documents of other versions stay readable.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import datetime, timedelta
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Final, TypeVar, cast, get_args, get_origin, get_type_hints

from turnkeeper.store.mongo.client import Document

SCHEMA: Final = 1
"""The schema of this version. Every document holds the schema that it was written by."""

T = TypeVar("T")
_Convert = Callable[[Any], Any]
_PLAIN: Final = frozenset({str, int, float, bool, bytes, datetime})
_MILLISECOND: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class _Form:
    encode: _Convert
    decode: _Convert
    is_nested: bool = False


def encode(value: Any) -> Document:
    """Returns the dataclass as a document with all its fields."""
    return cast(Document, _form(_kind(value)).encode(value))


def changes(value: Any, *, prefix: str = "") -> Document:
    """Returns the dataclass as the argument of a `$set`: only known fields change, also inside nested values."""
    changed: Document = {}
    for name, form in _forms(_kind(value)).items():
        content = getattr(value, name)
        if form.is_nested:
            changed |= changes(content, prefix=f"{prefix}{name}.")
        else:
            changed[prefix + name] = form.encode(content)
    return changed


def decode(kind: type[T], document: Mapping[str, Any]) -> T:
    """Returns the dataclass that a document holds. Raises TypeError if a field without a default is missing."""
    return cast(T, _form(cast(Any, kind)).decode(document))


@cache
def _forms(kind: Any) -> Mapping[str, _Form]:
    annotations = get_type_hints(kind)
    return {field.name: _form(annotations[field.name]) for field in fields(kind) if field.init}


@cache
def _form(annotation: Any) -> _Form:
    if annotation in _PLAIN:
        return _Form(_same, _same)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is UnionType:
        (inner,) = (argument for argument in arguments if argument is not NoneType)
        return _optional(_form(inner))
    if origin is tuple:
        return _array(_form(arguments[0]))
    if origin is Mapping:
        return _pairs(_form(arguments[1]))
    if annotation is timedelta:
        return _Form(lambda value: round(value / _MILLISECOND), lambda stored: stored * _MILLISECOND)
    if issubclass(annotation, Enum):
        return _Form(lambda value: value.value, annotation)
    if is_dataclass(annotation):
        return _nested(annotation)
    raise TypeError(f"no BSON form for {annotation}")


def _kind(value: Any) -> Any:
    return type(value)


def _same(value: Any) -> Any:
    return value


def _optional(inner: _Form) -> _Form:
    return _Form(
        lambda value: None if value is None else inner.encode(value),
        lambda stored: None if stored is None else inner.decode(stored),
    )


def _array(inner: _Form) -> _Form:
    return _Form(
        lambda value: [inner.encode(item) for item in value],
        lambda stored: tuple(inner.decode(item) for item in stored),
    )


def _pairs(inner: _Form) -> _Form:
    return _Form(
        lambda value: [{"k": key, "v": inner.encode(item)} for key, item in value.items()],
        lambda stored: {pair["k"]: inner.decode(pair["v"]) for pair in stored},
    )


def _nested(kind: Any) -> _Form:
    required = {field.name for field in fields(kind) if field.default is field.default_factory is MISSING}

    def encode_it(value: Any) -> Document:
        return {name: form.encode(getattr(value, name)) for name, form in _forms(kind).items()}

    def decode_it(stored: Mapping[str, Any]) -> Any:
        if absent := required - stored.keys():
            raise TypeError(f"a document for {kind.__name__} lacks {', '.join(sorted(absent))}")
        return kind(**{name: form.decode(stored[name]) for name, form in _forms(kind).items() if name in stored})

    return _Form(encode_it, decode_it, is_nested=True)
