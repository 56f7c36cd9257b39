"""BSON documents ↔ frozen dataclasses, by field names and type hints: the one place where a value changes its form.

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
"""Every document says by which schema it was written."""

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
    """The dataclass as a document with all its fields."""
    return cast(Document, _form(_kind(value)).encode(value))


def changes(value: Any, *, prefix: str = "") -> Document:
    """The dataclass as a `$set`: it touches known fields alone, also inside nested values."""
    changed: Document = {}
    for name, form in _forms(_kind(value)).items():
        content = getattr(value, name)
        if form.is_nested:
            changed |= changes(content, prefix=f"{prefix}{name}.")
        else:
            changed[prefix + name] = form.encode(content)
    return changed


def decode(kind: type[T], document: Mapping[str, Any]) -> T:
    """The dataclass that a document holds. Raises TypeError when a field without default is missing."""
    return cast(T, _form(cast(Any, kind)).decode(document))


@cache
def _forms(kind: Any) -> Mapping[str, _Form]:
    notifications = get_type_hints(kind)
    return {each.name: _form(notifications[each.name]) for each in fields(kind) if each.init}


@cache
def _form(notification: Any) -> _Form:
    if notification in _PLAIN:
        return _Form(_same, _same)
    origin, arguments = get_origin(notification), get_args(notification)
    if origin is UnionType:
        (inner,) = (each for each in arguments if each is not NoneType)
        return _optional(_form(inner))
    if origin is tuple:
        return _array(_form(arguments[0]))
    if origin is Mapping:
        return _pairs(_form(arguments[1]))
    if notification is timedelta:
        return _Form(lambda value: round(value / _MILLISECOND), lambda stored: stored * _MILLISECOND)
    if issubclass(notification, Enum):
        return _Form(lambda value: value.value, notification)
    if is_dataclass(notification):
        return _nested(notification)
    raise TypeError(f"no BSON form for {notification}")


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
        lambda value: [inner.encode(each) for each in value],
        lambda stored: tuple(inner.decode(each) for each in stored),
    )


def _pairs(inner: _Form) -> _Form:
    return _Form(
        lambda value: [{"k": key, "v": inner.encode(each)} for key, each in value.items()],
        lambda stored: {each["k"]: inner.decode(each["v"]) for each in stored},
    )


def _nested(kind: Any) -> _Form:
    required = {each.name for each in fields(kind) if each.default is each.default_factory is MISSING}

    def encode_it(value: Any) -> Document:
        return {name: form.encode(getattr(value, name)) for name, form in _forms(kind).items()}

    def decode_it(stored: Mapping[str, Any]) -> Any:
        if absent := required - stored.keys():
            raise TypeError(f"a document for {kind.__name__} lacks {', '.join(sorted(absent))}")
        return kind(**{name: form.decode(stored[name]) for name, form in _forms(kind).items() if name in stored})

    return _Form(encode_it, decode_it, is_nested=True)
