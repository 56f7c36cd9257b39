"""The program `turnkeeper`, in which functions of two libraries raise where they meet the word.

A library in Rust panics so, and anything may be raised by a signal: the answer of a model is read by such a library,
and so is what a caller sends.
"""

import sys
from collections.abc import Callable
from typing import Any

import orjson
from google.protobuf import json_format

from tests.e2e.support.hostile_tools import RAISED
from turnkeeper.__main__ import main

WORD = "canary-raise"
"""What follows it names the error."""


def raising(read: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the library's function, which raises if its argument has the word."""

    def checked(value: Any, *more: Any, **named: Any) -> Any:
        text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        for how, error in RAISED.items():
            if f"{WORD} {how}" in text:
                raise error()
        return read(value, *more, **named)

    return checked


if __name__ == "__main__":
    orjson.loads = raising(orjson.loads)
    json_format.MessageToDict = raising(json_format.MessageToDict)
    sys.exit(main())
