"""JSON texts in requests, checked before they are stored: later they are sent to a model as they are."""

import json

import orjson


def is_json(text: str) -> bool:
    """Returns True if a model can be sent the text: JSON without NaN, infinities and lone surrogates."""
    try:
        json.dumps(json.loads(text), ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def is_json_object(text: str) -> bool:
    """Returns True if orjson, which writes the text into the model's request, reads it as an object."""
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False
