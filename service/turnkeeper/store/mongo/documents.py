"""BSON documents ↔ frozen dataclasses, by field names and type hints: the one place that converts values.

Enums are their values, durations whole milliseconds, tuples arrays, sets sorted arrays; a mapping is an array of
`{k, v}`, because BSON keys cannot hold every text. Times have the database's precision, a millisecond, and are UTC.
Decoding ignores unknown fields and takes the default of a missing one, so that documents of other versions stay
readable. A value that an enum does not have is read as UNSPECIFIED, and stays as it is when the document is changed.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import datetime, timedelta
from enum import Enum
from functools import cache
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, Final, TypeVar, cast, get_args, get_origin, get_type_hints

from turnkeeper.domain.newer_version import is_unspecified, unspecified
from turnkeeper.store.mongo.client import Document
from turnkeeper.store.mongo.unreadable import UnreadableDocument

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
    strict: _Convert
    """As `decode`, but raises KeyError for a value that an enum does not have."""
    is_nested: bool = False
    is_enum: bool = False


def encode(value: Any) -> Document:
    """Returns the dataclass as a document with all its fields. Raises UnreadableDocument if one is UNSPECIFIED."""
    return cast(Document, _form(_kind(value)).encode(value))


def changes(value: Any, *, since: Any = None, prefix: str = "") -> Document:
    """Returns the dataclass as the argument of a `$set`: only known fields and values change, also inside nested
    values.

    `since`: what is stored, of the same class; what is equal there is left out. None if that is not known.
    """
    shape = _shape(_kind(value))
    before = (_UNKNOWN,) * len(shape.names) if since is None else shape.contents(since)
    changed: Document = {}
    for name, form, content, stored in zip(shape.names, shape.forms, shape.contents(value), before, strict=True):
        if content is stored or content == stored:
            continue
        if form.is_nested:
            changed |= changes(content, since=None if stored is _UNKNOWN else stored, prefix=f"{prefix}{name}.")
        elif not (form.is_enum and is_unspecified(content)):
            changed[prefix + name] = form.encode(content)
    return changed


def decode(kind: type[T], document: Mapping[str, Any], *, strict: bool = False) -> T:
    """Returns the dataclass that a document holds.

    Raises UnreadableDocument if a field without a default is missing, or has a form that this version does not know.
    `strict`: also if an enum does not have the value. What a decision rests on is read like that.
    """
    form = _form(cast(Any, kind))
    try:
        return cast(T, (form.strict if strict else form.decode)(document))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnreadableDocument(kind.__name__, schema=document.get("schema")) from error


@dataclass(frozen=True, slots=True)
class _Shape:
    """The fields of a dataclass. They are read together: a turn's documents have some two hundred."""

    names: tuple[str, ...]
    forms: tuple[_Form, ...]
    contents: Callable[[Any], tuple[Any, ...]]
    """Returns what a value has in all fields."""
    converted: tuple[tuple[str, _Convert], ...]
    """How to encode those that are not stored as they are."""


_UNKNOWN: Final = object()
"""Equals nothing that is stored."""


@cache
def _shape(kind: Any) -> _Shape:
    forms = _forms(kind)
    converted = tuple((name, form.encode) for name, form in forms.items() if form.encode is not _same)
    contents: Callable[[Any], Any] = attrgetter(*forms)
    if len(forms) == 1:  # of one name it returns no tuple
        (only,) = forms
        return _Shape(tuple(forms), tuple(forms.values()), lambda value: (getattr(value, only),), converted)
    return _Shape(tuple(forms), tuple(forms.values()), contents, converted)


@cache
def _forms(kind: Any) -> Mapping[str, _Form]:
    annotations = get_type_hints(kind)
    return {field.name: _form(annotations[field.name]) for field in fields(kind) if field.init}


@cache
def _form(annotation: Any) -> _Form:
    if annotation in _PLAIN:
        return _Form(_same, _same, _same)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is UnionType:
        (inner,) = (argument for argument in arguments if argument is not NoneType)
        return _optional(_form(inner))
    if origin in _CONTAINERS:
        return _CONTAINERS[origin](_form(arguments[-1] if origin is Mapping else arguments[0]))
    if annotation is timedelta:
        return _Form(lambda value: round(value / _MILLISECOND), _milliseconds, _milliseconds)
    if issubclass(annotation, Enum):
        return _enum(annotation)
    if is_dataclass(annotation):
        return _nested(annotation)
    raise TypeError(f"no BSON form for {annotation}")


def _kind(value: Any) -> Any:
    return type(value)


def _same(value: Any) -> Any:
    return value


def _milliseconds(stored: Any) -> timedelta:
    return cast(timedelta, stored * _MILLISECOND)


def _enum(annotation: type[Enum]) -> _Form:
    members, other = {member.value: member for member in annotation}, unspecified(annotation)

    def encode_it(value: Enum) -> Any:
        if value is other:
            raise UnreadableDocument(annotation.__name__, schema=None)
        return value.value

    return _Form(encode_it, lambda stored: members.get(stored, other), members.__getitem__, is_enum=True)


def _optional(inner: _Form) -> _Form:
    def optional(convert: _Convert) -> _Convert:
        return lambda value: None if value is None else convert(value)

    return _Form(optional(inner.encode), optional(inner.decode), optional(inner.strict), is_enum=inner.is_enum)


def _array(inner: _Form) -> _Form:
    def items(convert: _Convert) -> _Convert:
        return lambda stored: tuple(convert(item) for item in stored)

    return _Form(lambda value: [inner.encode(item) for item in value], items(inner.decode), items(inner.strict))


def _set(inner: _Form) -> _Form:
    return _Form(
        lambda value: sorted(inner.encode(item) for item in value),
        lambda stored: frozenset(inner.decode(item) for item in stored),
        lambda stored: frozenset(inner.strict(item) for item in stored),
    )


def _pairs(inner: _Form) -> _Form:
    def pairs(convert: _Convert) -> _Convert:
        return lambda stored: {pair["k"]: convert(pair["v"]) for pair in stored}

    return _Form(
        lambda value: [{"k": key, "v": inner.encode(item)} for key, item in value.items()],
        pairs(inner.decode),
        pairs(inner.strict),
    )


def _nested(kind: Any) -> _Form:
    required = {field.name for field in fields(kind) if field.default is field.default_factory is MISSING}

    def encode_it(value: Any) -> Document:
        shape = _shape(kind)
        document = dict(zip(shape.names, shape.contents(value), strict=True))
        for name, convert in shape.converted:
            document[name] = convert(document[name])
        return document

    def check(stored: Mapping[str, Any]) -> None:
        if absent := required - stored.keys():
            raise TypeError(f"a document for {kind.__name__} lacks {', '.join(sorted(absent))}")

    def decode_it(stored: Mapping[str, Any]) -> Any:
        check(stored)
        return kind(**{name: form.decode(stored[name]) for name, form in _forms(kind).items() if name in stored})

    def decode_strictly(stored: Mapping[str, Any]) -> Any:
        check(stored)
        return kind(**{name: form.strict(stored[name]) for name, form in _forms(kind).items() if name in stored})

    return _Form(encode_it, decode_it, decode_strictly, is_nested=True)


_CONTAINERS: Final[Mapping[Any, Callable[[_Form], _Form]]] = {tuple: _array, frozenset: _set, Mapping: _pairs}
