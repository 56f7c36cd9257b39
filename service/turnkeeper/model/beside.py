"""What a server sends beside a tool call: merged as its parts arrive, kept with the call, sent back with it.

A model's server may hide state there that it needs again: its own id of the call, a signature of its thoughts.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

import orjson

from turnkeeper.model.failure import Reason, failure
from turnkeeper.model.text_repair import whole

logger = logging.getLogger(__name__)

_NAMES = frozenset({"id", "index", "type", "format", "role", "name"})
"""Fields whose later value replaces the earlier one; other texts arrive in parts."""
_MOST_COMPARED = 64
"""Items of a list that a new one is compared with, at most."""


_OF_A_MESSAGE = frozenset({"role", "content", "refusal", "tool_calls", "function_call", "audio", "annotations"})
"""Fields of a message that are read, or that no server needs again."""
MOST_BESIDE = 32 * 1024
"""Bytes of what came beside a message that are kept with its calls, at most."""
_NOTHING: tuple[object, ...] = (None, "", [], {})


class MessageBeside:
    """What came beside a message as a whole; its calls may need it."""

    def __init__(self) -> None:
        """Begins with nothing."""
        self.fields: dict[str, object] = {}
        self._room = MOST_BESIDE

    def add(self, message: Mapping[str, object], *, repeats: bool) -> None:
        """Adds the fields of a delta. Beyond the limit a text is cut, and any other field is left out."""
        if _OF_A_MESSAGE.issuperset(message):
            return
        for key, value in message.items():
            if key in _OF_A_MESSAGE or value in _NOTHING:
                continue
            size = len(value) if isinstance(value, str) else size_of(value)
            if size <= self._room:
                merge(self.fields, {key: value}, repeats=repeats)
            elif isinstance(value, str):
                merge(self.fields, {key: value[: max(self._room, 0)]}, repeats=repeats)
            elif self.fields.pop(key, None) is not None:
                logger.warning("%.40r beside a model's message is larger than %d bytes: not kept", key, MOST_BESIDE)
            self._room -= size


def merge(kept: dict[str, object], more: Mapping[str, object], *, repeats: bool) -> None:
    """Adds fields as they arrive: texts grow, lists grow or go on with their last item, objects are merged.

    `repeats`: a text that is there already is not added again.
    """
    for key, value in more.items():
        kept[key] = _merged(kept.get(key), value, key=key, repeats=repeats)


def _merged(old: object, new: object, *, key: str, repeats: bool) -> object:
    """Returns a field's value after one more part of it."""
    if old is None or new is None:
        return old if new is None else new
    if isinstance(old, str) and isinstance(new, str):
        return new if key in _NAMES or (repeats and old == new) else old + new
    if isinstance(old, dict) and isinstance(new, dict):
        merge(old, new, repeats=repeats)
        return old
    if isinstance(old, list) and isinstance(new, list):
        for item in new:
            if old and _goes_on(old[-1], item):
                old[-1] = _merged(old[-1], item, key=key, repeats=repeats)
            elif not (repeats and item in old[-_MOST_COMPARED:]):
                old.append(item)
        return old
    return new


def _goes_on(last: object, item: object) -> bool:
    """Returns True if an item of a list is the next part of the last one: of the same type, at the same index."""
    if not isinstance(last, dict) or not isinstance(item, dict) or last == item:
        return False
    same = all(last.get(key) == item.get(key) for key in ("type", "index"))
    return same and last.get("type") is not None and not last.get("signature")


def size_of(value: object) -> int:
    """Returns the bytes of the value as JSON. Raises ModelFailure if it is nested too deep."""
    try:
        return len(json.dumps(value))
    except RecursionError:
        raise failure(Reason.MALFORMED) from None


def packed(
    *,
    origin: str,
    call_id: str,
    call: Mapping[str, object],
    function: Mapping[str, object],
    message: Mapping[str, object],
) -> str:
    """Returns what is kept with a call as JSON; "" if nothing came with it.

    `origin` tells whose it is; `message` is what came beside the whole message, kept with its first call.
    """
    fields = {"id": call_id, "call": call, "function": function, "message": message}
    kept = {key: value for key, value in fields.items() if value}
    if not kept:
        return ""
    return whole(json.dumps({"of": origin, **kept}, ensure_ascii=False, separators=(",", ":")))


def unpacked(provider_json: str, *, origin: str) -> Mapping[str, Any]:
    """Returns what is kept with a call, as `packed` names it; nothing if it is another server's or model's."""
    if not provider_json:
        return {}
    try:
        kept = orjson.loads(provider_json)
    except orjson.JSONDecodeError:
        return {}
    return kept if isinstance(kept, dict) and kept.get("of") == origin else {}


def origin_of(server: tuple[str, int], model: str) -> str:
    """Returns a name for a model at a server that reveals neither."""
    return hashlib.sha256(f"{server[0]}:{server[1]} {model}".encode(errors="replace")).hexdigest()[:12]
