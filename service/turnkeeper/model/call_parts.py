"""Puts tool calls together from their parts: which part belongs to which call, and what came beside a call."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from turnkeeper.domain.message import MOST_CALLS
from turnkeeper.model.beside import merge, size_of
from turnkeeper.model.failure import Reason, failure
from turnkeeper.model.text_repair import whole

_CALL_OVERHEAD = 64  # bytes that a call counts beside its text, as ids and names take them where it is stored
_OF_A_CALL = frozenset({"index", "id", "type", "function", "name", "arguments"})
_OF_A_FUNCTION = frozenset({"name", "arguments"})
_USUAL_TYPES = (None, "", "function")
_STRUCTURE = re.compile(r'\\.|["{}\[\]]', re.DOTALL)
_SPACE = re.compile(r"\s*")
_MOST_REPEATS = 32
"""Objects that the arguments of one call are searched for, at most."""
_ENCODINGS = 3
"""How often arguments may be encoded as JSON inside JSON, at most."""


@dataclass(slots=True, eq=False)
class ReceivedCall:
    """A tool call as far as its parts have arrived."""

    call_id: str = ""
    name: str = ""
    index: int | None = None
    beside: dict[str, object] = field(default_factory=dict)
    """What came beside the call, to be sent back with it."""
    beside_function: dict[str, object] = field(default_factory=dict)
    """What came beside its name and arguments."""
    _arguments: list[str] = field(default_factory=list)
    _scanned: int = 0
    _depth: int = 0
    _in_text: bool = False
    _rest: str = ""
    _whole: tuple[str, object] | None = None
    """The arguments as text and as value, until more arrive."""

    @property
    def has_arguments(self) -> bool:
        """Returns True once arguments have arrived."""
        return bool(self._arguments)

    def add(self, arguments: str) -> None:
        """Adds a part of the arguments."""
        if arguments:
            self._arguments.append(arguments)
            self._whole = None

    def is_whole(self) -> bool:
        """Returns True if the arguments so far are a whole JSON value, by its braces. Reads each part once."""
        for part in self._arguments[self._scanned :]:
            self._scan(part)
        self._scanned = len(self._arguments)
        return bool(self._arguments) and self._depth == 0 and not self._in_text

    def arguments(self) -> str:
        """Returns the arguments: the model's own text, once and encoded once, also where a server repeats it."""
        return self._read()[0]

    def value(self) -> object:
        """Returns the arguments as a value; None if they are not JSON."""
        return self._read()[1]

    def _read(self) -> tuple[str, object]:
        """Returns the arguments as text and as value."""
        if self._whole is None:
            text = self._text()
            self._whole = text, _value(text)
        return self._whole

    def _text(self) -> str:
        """Returns the arguments as text."""
        text = whole("".join(self._arguments))
        if text.strip() in ("", "null"):
            return "{}"
        text = _decoded(text)
        if len(self._arguments) < 2 or isinstance(_value(text), dict):
            return text
        last = whole(self._arguments[-1])
        if isinstance(_value(last), dict) and all(last.startswith(part) for part in self._arguments):
            return last  # each part has all of the arguments so far
        return _one_of(text) or text

    def _scan(self, part: str) -> None:
        """Follows texts and braces through one more part."""
        part, end = self._rest + part, 0
        for match in _STRUCTURE.finditer(part):
            mark, end = match[0], match.end()
            if mark == '"':
                self._in_text = not self._in_text
            elif not self._in_text and len(mark) == 1:
                self._depth += 1 if mark in "{[" else -1
        self._rest = "\\" if part[end:].endswith("\\") else ""


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a tool call."""

    index: int | None
    call_id: str
    name: str
    arguments: str
    """As text, also where the server sends an object."""

    @property
    def names_a_call(self) -> bool:
        """Returns True if the part has an id or a name."""
        return bool(self.call_id or self.name)

    @property
    def is_anonymous(self) -> bool:
        """Returns True if nothing in the part tells to which call it belongs."""
        return self.index is None and not self.names_a_call


class CallParts:
    """The tool calls of one answer."""

    def __init__(self, *, spend: Callable[[int], None]) -> None:
        """`spend` counts bytes of the answer, and raises ModelFailure beyond its limit."""
        self.calls: list[ReceivedCall] = []
        """In the order in which they began."""
        self._spend = spend
        self._by_index: dict[int, ReceivedCall] = {}
        self._by_id: dict[str, ReceivedCall] = {}
        self._latest: ReceivedCall | None = None

    def take(self, parts: object, *, last: bool) -> None:
        """Reads the parts of one chunk; `last`: it may repeat what came before. Raises ModelFailure if unreadable."""
        if not isinstance(parts, list):
            raise failure(Reason.MALFORMED)
        repeatable = _by_content(self.calls) if last else {}
        for position, value in enumerate(parts):
            if not isinstance(value, dict):
                raise failure(Reason.MALFORMED)
            part = _part(value)
            call = _repeated_one(repeatable, part) or self._call_of(part, position=position if len(parts) > 1 else None)
            self._add(call, part, repeats=(last or bool(part.name)) and _repeats(call, part.arguments))
            self._keep(call, value)
            self._latest = call

    def end(self) -> None:
        """Drops calls of which nothing has arrived: some servers send an empty one with each text."""
        self.calls = [call for call in self.calls if call.name or call.call_id or call.has_arguments]

    def _add(self, call: ReceivedCall, part: _Part, *, repeats: bool) -> None:
        """Adds a part to its call; `repeats`: its arguments are those that the call has."""
        arguments = "" if repeats else part.arguments
        self._spend(len(f"{part.call_id}{part.name}{arguments}".encode(errors="replace")))
        if part.call_id and not call.call_id:
            call.call_id = part.call_id
            self._by_id.setdefault(part.call_id, call)
        call.name = _joined_name(call, part.name)
        call.add(arguments)

    def _keep(self, call: ReceivedCall, value: Mapping[str, object]) -> None:
        """Keeps what came beside a call, and beside its name and arguments."""
        function = value.get("function")
        beside = {} if _OF_A_CALL.issuperset(value) else _without(value, _OF_A_CALL)
        if value.get("type") not in _USUAL_TYPES:
            beside["type"] = value["type"]
        inner = _without(function, _OF_A_FUNCTION) if isinstance(function, dict) and len(function) > 1 else {}
        for kept, more in ((call.beside, beside), (call.beside_function, inner)):
            if more:
                self._spend(size_of(more))
                merge(kept, more, repeats=True)

    def _call_of(self, part: _Part, *, position: int | None) -> ReceivedCall:
        """Returns the call that a part belongs to, a new one if the part begins it. `position`: among several parts."""
        call = self._known(part)
        if call is None:
            call = self._open(part, position=position)
            if call is None or _begins(call, part):
                call = self._begin(part)
        return call

    def _known(self, part: _Part) -> ReceivedCall | None:
        """Returns the call with the part's id. A server that gives all its calls one id does not mean that call."""
        call = self._by_id.get(part.call_id) if part.call_id else None
        if call is None or not part.name:
            return call
        if part.index is not None and call.index is not None and part.index != call.index:
            return self._by_index.get(part.index)
        begins = part.arguments.lstrip().startswith("{") and call.is_whole() and bool(call.value())
        return None if begins and not _repeats(call, part.arguments) else call

    def _open(self, part: _Part, *, position: int | None) -> ReceivedCall | None:
        """Returns the call at the part's index, without one the call of the part before; None if there is none."""
        if part.index is None and not part.is_anonymous:
            return self._latest
        place = position if part.index is None else part.index
        if place is None:
            return self._latest
        call = self._by_index.get(place) if part.index is not None else None
        if call is None and not part.names_a_call and 0 <= place < len(self.calls):
            return self.calls[place]
        return call

    def _begin(self, part: _Part) -> ReceivedCall:
        """Returns a new call."""
        self._spend(_CALL_OVERHEAD)
        if len(self.calls) == MOST_CALLS:
            raise failure(Reason.ANSWER_TOO_LONG)
        call = ReceivedCall(index=part.index)
        self.calls.append(call)
        if part.index is not None:
            self._by_index[part.index] = call
        return call


def _part(value: Mapping[str, object]) -> _Part:
    """Returns a part of a call, also one whose name and arguments stand beside its id."""
    function = value if value.get("function") is None else value["function"]
    if not isinstance(function, Mapping):
        raise failure(Reason.MALFORMED)
    return _Part(
        index=index_of(value.get("index")),
        call_id=_text(value.get("id")),
        name=_text(function.get("name")),
        arguments=_arguments(function.get("arguments")),
    )


def _begins(call: ReceivedCall, part: _Part) -> bool:
    """Returns True if a part whose id is not known begins a new call, and does not go on with `call`.

    Some servers give every call index 0, and some give none an index. Some repeat the name in each part, or send it in
    parts, and some make up an id for each part.
    """
    if not part.name:
        return False
    if part.call_id and call.call_id:
        goes_on = part.name == call.name and call.has_arguments and not part.arguments.lstrip().startswith("{")
        return not goes_on or call.is_whole()
    if part.name == call.name:
        starts_again = part.index is None and not call.has_arguments and not part.arguments
        return starts_again or call.is_whole()
    return part.index is None or (bool(call.name) and call.has_arguments)


def _by_content(calls: Sequence[ReceivedCall]) -> dict[str, list[ReceivedCall]]:
    """Returns the calls that are whole, by their names and arguments."""
    by_content: dict[str, list[ReceivedCall]] = {}
    for call in calls:
        if call.is_whole() and isinstance(call.value(), dict):
            by_content.setdefault(_content(call.name, call.value()), []).append(call)
    return by_content


def _repeated_one(repeatable: Mapping[str, list[ReceivedCall]], part: _Part) -> ReceivedCall | None:
    """Returns the call that a part without an id repeats, each call once; None if it repeats none."""
    if part.call_id or not part.name or not repeatable:
        return None
    value = _value(_decoded(whole(part.arguments)))
    same = repeatable.get(_content(part.name, value), []) if isinstance(value, dict) else []
    call = next((call for call in same if part.index in (call.index, None)), None)
    if call is not None:
        same.remove(call)
    return call


def _content(name: str, value: object) -> str:
    """Returns a text that is equal for calls of one tool with equal arguments."""
    return f"{name} {json.dumps(value, sort_keys=True)}"


def _repeats(call: ReceivedCall, arguments: str) -> bool:
    """Returns True if these are the whole arguments of the call once more."""
    if not arguments.lstrip().startswith(("{", '"')) or not call.is_whole():
        return False
    theirs = _value(_decoded(whole(arguments)))
    return isinstance(theirs, dict) and call.value() == theirs


def _joined_name(call: ReceivedCall, name: str) -> str:
    """Returns the call's name with a further part of it; some servers repeat all of it."""
    if not call.name or call.name == name or call.has_arguments:
        return call.name or name
    return name if name.startswith(call.name) else call.name + name


def _one_of(text: str) -> str:
    """Returns the one object that a text of several has, again and again or beside empty ones; "" if it has more."""
    decoder, at, source = json.JSONDecoder(), 0, ""
    value: object = {}
    for _ in range(_MOST_REPEATS):
        try:
            following, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return ""
        if not isinstance(following, dict) or (value and following and following != value):
            return ""
        if following or not source:
            value, source = following, text[at:end]
        space = _SPACE.match(text, end)
        at = space.end() if space else end
        if at == len(text):
            return source
    return ""


def _decoded(text: str) -> str:
    """Returns arguments that were encoded more than once as they were encoded first."""
    for _ in range(_ENCODINGS):
        value = _value(text) if text.lstrip().startswith('"') else None
        if not isinstance(value, str) or not value.lstrip().startswith(("{", '"')):
            return text
        text = value
    return text


def _value(text: str) -> object:
    """Returns the value of a JSON text; None if it is none."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _without(value: Mapping[str, object], known: Collection[str]) -> dict[str, object]:
    """Returns the fields that have a value and are not known."""
    return {key: field for key, field in value.items() if key not in known and field is not None}


def index_of(value: object) -> int | None:
    """Returns an index, also one that is a text; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value[:9])
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: object) -> str:
    """Returns a text, "" for null, and a number as text. Raises ModelFailure for anything else."""
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise failure(Reason.MALFORMED)
    return value


def _arguments(value: object) -> str:
    """Returns a text as it is, and the JSON of an object: some servers send one."""
    if value == []:  # of PHP, whose empty object is an empty list
        return "{}"
    is_object = isinstance(value, dict)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) if is_object else _text(value)
