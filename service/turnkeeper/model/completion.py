"""Assembles one chat completion from its chunks as they arrive."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import orjson

from turnkeeper.domain.json_text import UnfitJson, check_levels
from turnkeeper.domain.message import MOST_TOKENS, FinishReason, ToolRequest, Usage
from turnkeeper.model.contract import ModelAnswer, ModelRequest
from turnkeeper.model.dialect import FINISH
from turnkeeper.model.failure import Reason, failure
from turnkeeper.model.openai_failure import event_failure
from turnkeeper.model.server_error import is_error
from turnkeeper.model.sse import DONE

_CALL_OVERHEAD = 64  # bytes that a call counts beside its text, as ids and names take them where it is stored
_LONGEST_NAME = 256  # characters of the model's name, as the server gives it
MOST_CALLS = 1024
"""Tool calls of one answer, at most."""


@dataclass(slots=True)
class _Call:
    """A tool call as far as its chunks have arrived."""

    call_id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class Completion:
    """Takes events in order, `[DONE]` the last; returns text as it grows, and one answer at the end.

    Every method may raise ModelFailure.
    """

    def __init__(self, request: ModelRequest, *, max_answer_bytes: int) -> None:
        """`max_answer_bytes` limits text and tool calls together, in UTF-8."""
        self.tokens = 0
        """Events that brought output of the model: text, reasoning, a part of a tool call, a finish reason.

        A role, a usage report and an unknown event are not output.
        """
        self._request = request
        self._room = max_answer_bytes
        self._text: list[str] = []
        self._returned = 0
        self._half = ""
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._finish = ""
        self._refused = False
        self._usage = Usage(model_calls=1)
        self._model = request.model
        self._digest: Any = None
        """Of the request's messages: computed once, at the first call without an id."""

    def take(self, event: bytes) -> None:
        """Reads one event."""
        if event == DONE:
            self._end()
            return
        chunk = _decode(event)
        if not isinstance(chunk, dict):
            raise failure(Reason.MALFORMED)
        if is_error(chunk):
            raise event_failure(chunk)
        if chunk.get("usage"):
            self._take_usage(chunk["usage"])
        if chunk.get("model") != self._model:
            self._model = _whole(_text(chunk.get("model")))[:_LONGEST_NAME] or self._model
        choices = chunk.get("choices")
        if not choices:
            return
        if not isinstance(choices, list) or not isinstance(choices[0], dict):
            raise failure(Reason.MALFORMED)
        self._take_choice(choices[0])

    def new_text(self) -> str:
        """Returns the text since the last call, often none. It stays valid if the next event is a failure."""
        text = "".join(self._text[self._returned :])
        self._returned = len(self._text)
        return text

    def finish(self) -> ModelAnswer:
        """Returns the whole answer, after `[DONE]`."""
        if not self._finish:
            raise failure(Reason.NO_FINISH_REASON)
        if self._finish == "content_filter":
            raise failure(Reason.CONTENT_FILTER)
        if self._refused:
            raise failure(Reason.REFUSAL)
        reason = FINISH.get(self._finish)
        if reason is None or (reason is FinishReason.TOOL_CALLS and not self._calls):
            raise failure(Reason.BAD_FINISH_REASON)
        if reason is FinishReason.LENGTH and self._calls:
            raise failure(Reason.TOOL_CALL_CUT_SHORT)
        return ModelAnswer(
            text="".join(self._text),
            tool_requests=self._tool_requests(),
            finish_reason=FinishReason.TOOL_CALLS if self._calls else reason,
            usage=self._usage,
            model=self._model,
        )

    def _end(self) -> None:
        """Adds U+FFFD for a character whose other half has not arrived."""
        half, self._half = self._half, ""
        if half:
            self._grow("\ufffd")

    def _take_choice(self, choice: dict[str, object]) -> None:
        """Reads a chunk's choice: text, tool calls, finish reason."""
        delta = choice.get("delta") or {}
        if not isinstance(delta, dict):
            raise failure(Reason.MALFORMED)
        finish = _text(choice.get("finish_reason"))
        content = _text(delta.get("content"))
        if content and not finish and len(delta) == 1:  # nearly every chunk is text alone
            self.tokens += 1
            self._grow(content)
            return
        refusal = _text(delta.get("refusal"))
        calls = delta.get("tool_calls") or []
        if finish or content or refusal or calls or delta.get("reasoning_content") or delta.get("reasoning"):
            self.tokens += 1
        self._finish = finish or self._finish
        self._refused = self._refused or bool(refusal)
        if not isinstance(calls, list):
            raise failure(Reason.MALFORMED)
        for call in calls:
            self._take_call(call)
        if content:
            self._grow(content)

    def _grow(self, content: str) -> None:
        """Adds text; a half of a character waits for its other half."""
        if content.isascii() and not self._half:
            self._spend(len(content))
            self._text.append(content)
            return
        content = self._half + content
        self._half = ""
        if content and "\ud800" <= content[-1] <= "\udbff":
            self._half = content[-1]
            content = content[:-1]
        if not content:
            return
        content = _whole(content)
        self._spend(len(content.encode()))
        self._text.append(content)

    def _take_call(self, part: object) -> None:
        """Reads a part of a tool call."""
        function = part.get("function") if isinstance(part, dict) else None
        if not isinstance(part, dict) or not isinstance(function, dict | None):
            raise failure(Reason.MALFORMED)
        call_id, name = _text(part.get("id")), _text((function or {}).get("name"))
        arguments = _arguments((function or {}).get("arguments"))
        call = self._call(part.get("index"), call_id=call_id, name=name)
        self._spend(len((call_id + name).encode(errors="replace")) + len(arguments.encode(errors="replace")))
        call.call_id = call.call_id or call_id
        call.name += "" if name == call.name else name
        call.arguments.append(arguments)

    def _call(self, index: object, *, call_id: str, name: str) -> _Call:
        """Returns the call that a part belongs to, a new one if the part begins it."""
        open_call = self._by_index.get(index) if isinstance(index, int) else self._last_call()
        if open_call is not None and not _begins(open_call, index=index, call_id=call_id, name=name):
            return open_call
        self._spend(_CALL_OVERHEAD)
        if len(self._calls) == MOST_CALLS:
            raise failure(Reason.ANSWER_TOO_LONG)
        call = _Call()
        self._calls.append(call)
        if isinstance(index, int):
            self._by_index[index] = call
        return call

    def _last_call(self) -> _Call | None:
        """Returns the call that began last; None before the first."""
        return self._calls[-1] if self._calls else None

    def _take_usage(self, usage: object) -> None:
        """Reads the usage report."""
        if isinstance(usage, dict):
            self._usage = Usage(
                input_tokens=_count(usage.get("prompt_tokens")),
                output_tokens=_count(usage.get("completion_tokens")),
                model_calls=1,
            )

    def _spend(self, size: int) -> None:
        """Counts `size` bytes of the answer. Raises ModelFailure beyond the limit."""
        self._room -= size
        if self._room < 0:
            raise failure(Reason.ANSWER_TOO_LONG)

    def _tool_requests(self) -> tuple[ToolRequest, ...]:
        """Returns the calls as requests; one without an id, or with one that was used before, gets a new id."""
        taken = {call.tool_call_id for message in self._request.messages for call in message.tool_requests}
        requests: list[ToolRequest] = []
        for position, call in enumerate(self._calls):
            if not call.name:
                raise failure(Reason.MALFORMED)
            call_id = _whole(call.call_id)
            if not call_id or call_id in taken:
                call_id = self._new_id(position, taken=taken)
            taken.add(call_id)
            arguments = _whole("".join(call.arguments))
            if not arguments.strip():
                arguments = "{}"
            requests.append(ToolRequest(tool_call_id=call_id, tool=_whole(call.name), arguments_json=arguments))
        return tuple(requests)

    def _new_id(self, position: int, *, taken: set[str]) -> str:
        """Returns an id that is not in `taken`, the same for the same request and position."""
        if self._digest is None:
            self._digest = hashlib.sha256(repr(self._request.messages).encode(errors="replace"))
        digest = self._digest.copy()
        while True:
            digest.update(f"/{position}".encode())
            call_id = f"call_{digest.hexdigest()[:24]}"
            if call_id not in taken:
                return call_id


def _begins(open_call: _Call, *, index: object, call_id: str, name: str) -> bool:
    """Returns True if a part begins a new call: some servers give every call index 0, and some give none an index."""
    if not name:
        return False
    if call_id and open_call.call_id:
        return call_id != open_call.call_id
    return not isinstance(index, int)


def _decode(event: bytes) -> object:
    """Returns the event's JSON value. Raises ModelFailure if the event is not JSON, or is nested too deep."""
    try:
        check_levels(event)
        return orjson.loads(event)
    except UnfitJson:
        raise failure(Reason.MALFORMED) from None
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(event)  # reads what orjson refuses: half a character, escaped, its other half to come
    except ValueError:
        raise failure(Reason.MALFORMED) from None


def _text(value: object) -> str:
    """Returns a text, "" for null. Raises ModelFailure for anything else."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise failure(Reason.MALFORMED)
    return value


def _arguments(value: object) -> str:
    """Returns a text as it is, and the JSON of an object: some servers send one."""
    is_object = isinstance(value, dict)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) if is_object else _text(value)


def _count(value: object) -> int:
    """Returns a count of tokens, MOST_TOKENS at most; 0 for anything else."""
    return min(value, MOST_TOKENS) if type(value) is int and value > 0 else 0


def _whole(text: str) -> str:
    """Returns the text with escaped halves of characters joined, and U+FFFD for a half without the other."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
