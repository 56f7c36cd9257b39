"""Copies of frozen values with a few fields changed: `dataclasses.replace` in less than half of its time.

A turn makes some thirty of them.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import replace as replace  # noqa: PLC0414 - its calls are checked by the fields' types
else:

    def replace(value: Any, /, **changes: Any) -> Any:
        """Returns a copy of a dataclass with these fields changed, as `dataclasses.replace` does.

        Raises TypeError for a field that the class does not have.
        """
        kind = type(value)
        form = _form(kind)
        if form is None:
            return dataclasses.replace(value, **changes)
        content, setters, setter_of = form
        copy = object.__new__(kind)
        for put, part in zip(setters, content(value), strict=True):
            put(copy, part)
        for name, part in changes.items():
            if name not in setter_of:
                raise TypeError(f"{kind.__name__} has no field {name}")
            setter_of[name](copy, part)
        return copy


_Set = Callable[[Any, Any], None]
_Form = tuple[Callable[[Any], tuple[Any, ...]], tuple[_Set, ...], dict[str, _Set]]
_LEAST_FIELDS = 2
"""An `attrgetter` of fewer names returns no tuple."""


@cache
def _form(kind: Any) -> _Form | None:
    """Returns how to read all fields of such a value, and how to set each of them.

    Returns None for a class whose values are more than slots that are set, and for anything but a dataclass.
    """
    if not dataclasses.is_dataclass(kind) or hasattr(kind, "__post_init__"):
        return None
    setters = dict(_setters(kind))
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    if len(names) < _LEAST_FIELDS or names != list(setters):
        return None
    return attrgetter(*names), tuple(setters.values()), setters


def _setters(kind: Any) -> Iterator[tuple[str, _Set]]:
    for field in dataclasses.fields(kind):
        slot: Any = getattr(kind, field.name, None)
        if hasattr(slot, "__set__") and hasattr(slot, "__objclass__"):
            yield field.name, slot.__set__
