"""Assembles one chat completion from its chunks as they arrive."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from turnkeeper.domain.message import MOST_TOKENS, FinishReason, ToolRequest, Usage
from turnkeeper.model.answer_text import AnswerText
from turnkeeper.model.beside import MessageBeside, packed
from turnkeeper.model.call_parts import CallParts, index_of
from turnkeeper.model.content_parts import content_of, text_of
from turnkeeper.model.contract import ModelAnswer, ModelRequest
from turnkeeper.model.dialect import FINISH, REASONING_FIELDS, plain_word
from turnkeeper.model.failure import Reason, failure
from turnkeeper.model.openai_failure import event_failure
from turnkeeper.model.server_error import is_error
from turnkeeper.model.text_repair import decoded, whole

logger = logging.getLogger(__name__)

_RANKS: Mapping[FinishReason | Reason, int] = {
    FinishReason.STOP: 1,
    FinishReason.TOOL_CALLS: 2,
    FinishReason.LENGTH: 3,
    Reason.BAD_FINISH_REASON: 4,
    Reason.REFUSAL: 5,
    Reason.CONTENT_FILTER: 6,
}
"""Of two finish words of one answer the higher one counts: a filter's verdict stays one if `stop` follows."""
_LONGEST_NAME = 256
"""Characters of the model's name, and of a finish word, as the server gives them."""
_MOST_STORED = 252 * 1024
"""Bytes of an answer with all that is kept with its calls, at most; an event has room for them."""
_CALL_OVERHEAD = 80
"""Bytes that a call takes in an event beside its texts: ids, tags and lengths."""
_HEAD = ("usage", "error")
_BESIDE_A_DELTA = ("message", "usage", "text")
_LARGE_EVENT = 64 * 1024
"""Bytes of an event whose arrays and objects are counted before it is read."""
_MOST_FURTHER = 256 * 1024
"""Bytes of further choices that are kept until the first one turns out to be an answer, at most."""


class Completion:
    """Takes chunks in order; returns text as it grows, and one answer at the end.

    Every method may raise ModelFailure.
    """

    def __init__(self, request: ModelRequest, *, max_answer_bytes: int, origin: str = "") -> None:
        """`max_answer_bytes` limits text and tool calls together, in UTF-8. `origin`: see `origin_of`."""
        self.tokens = 0
        """Events that brought output of the model: text, reasoning, a part of a tool call, a finish reason.

        A role, a usage report or an unknown event is none.
        """
        self._request = request
        self._origin = origin
        self._room = max_answer_bytes
        self._text = AnswerText(spend=self._spend)
        self._calls = CallParts(spend=self._spend)
        self._finish: FinishReason | Reason | None = None
        self._unknown_word = ""
        self._refused = False
        self._reasoned = False
        self._beside = MessageBeside()
        self._further: list[tuple[int | None, Mapping[str, Any]]] = []
        self._further_room = _MOST_FURTHER
        self._answer_index = 0
        self._are_parts = False
        self._usage = Usage(model_calls=1)
        self._model = request.model

    @property
    def finished(self) -> bool:
        """Returns True once a finish word has arrived."""
        return self._finish is not None or bool(self._unknown_word)

    def take_text(self, text: str, count: int) -> bool:
        """Takes the text of `count` events that have nothing else. Returns False if there may be no room for it."""
        if 4 * len(text) > self._room:
            return False
        self.tokens += count
        self._text.add(text)
        return True

    def take(self, event: bytes) -> bool:
        """Reads one event's JSON. Returns True if it has text and nothing else."""
        content = self.text_alone(event)
        if content is not None:
            self.tokens += 1
            self._text.add(content)
            return True
        chunk = decoded(event)
        if not isinstance(chunk, dict):
            raise event_failure(chunk) if is_error(chunk) else failure(Reason.MALFORMED)
        choices = chunk.get("choices")
        if not choices or "usage" in chunk or "error" in chunk or chunk.get("model") != self._model:
            self._take_head(chunk)
        if choices:
            self._take_choices(choices, size=len(event))
        return False

    def text_alone(self, event: bytes) -> str | None:
        """Returns the text of a chunk that has nothing else, as nearly every one; None for any other chunk.

        Nothing beside the text is looked at, so that its depth does not matter.
        """
        if len(event) > _LARGE_EVENT:
            return None
        try:
            chunk = orjson.loads(event)
            (choice,) = chunk["choices"]
            (name,) = delta = choice["delta"]
            content = delta[name]
        except (ValueError, LookupError, TypeError):
            return None
        if name != "content" or type(content) is not str or choice.get("finish_reason") or choice.get("index"):
            return None
        is_plain = (
            content and not self._answer_index and chunk.get("model") == self._model and chunk.keys().isdisjoint(_HEAD)
        )
        return content if is_plain and choice.keys().isdisjoint(_BESIDE_A_DELTA) else None

    def new_text(self) -> str:
        """Returns the text since the last call, often none. It stays valid if the next event is a failure."""
        return self._text.new()

    def end(self) -> None:
        """Reads the end of the stream: further choices count if the first has nothing, half a character is U+FFFD."""
        self._are_parts = self._are_parts or self._number_parts()
        self._take_further()
        self._calls.end()
        self._text.end()

    def finish(self) -> ModelAnswer:
        """Returns the whole answer, after `end`."""
        finish_reason = self._check_end()
        return ModelAnswer(
            text=str(self._text),
            tool_requests=self._tool_requests(),
            finish_reason=finish_reason,
            usage=self._usage,
            model=self._model,
        )

    def _check_end(self) -> FinishReason:
        """Returns why the answer ended. Raises ModelFailure if it does not count."""
        finish, has_calls = self._finish, bool(self._calls.calls)
        if isinstance(finish, Reason):
            raise failure(finish, before_output=not (self._text or has_calls or self._reasoned or self._refused))
        if not self.finished:
            raise failure(Reason.NO_FINISH_REASON)
        if self._refused:
            raise failure(Reason.REFUSAL)
        if not self._text and not has_calls:
            self._check_empty(finish)
        if finish is None:
            logger.warning(
                "finish reason %.40r of a model's server is not known: it counts as stop", self._unknown_word
            )
        if finish is FinishReason.TOOL_CALLS and not has_calls:
            raise failure(Reason.BAD_FINISH_REASON)
        if finish is FinishReason.LENGTH and has_calls:
            raise failure(Reason.TOOL_CALL_CUT_SHORT)
        return FinishReason.TOOL_CALLS if has_calls else finish or FinishReason.STOP

    def _check_empty(self, finish: FinishReason | None) -> None:
        """Raises ModelFailure for an answer without text and calls, unless its server reports no output either."""
        if finish is None:
            raise failure(Reason.BAD_FINISH_REASON)
        has_output = self._usage.output_tokens or self._beside.fields
        if has_output and not self._reasoned and finish is not FinishReason.TOOL_CALLS:
            raise failure(Reason.UNREAD_ANSWER)

    def _take_head(self, chunk: Mapping[str, Any]) -> None:
        """Reads what stands beside the choices. Raises ModelFailure if the chunk reports an error."""
        if is_error(chunk):
            raise event_failure(chunk, before_output=not self.tokens)
        if chunk.get("usage"):
            self._take_usage(chunk["usage"])
        if isinstance(model := chunk.get("model"), str) and model:
            self._model = whole(model[:_LONGEST_NAME])

    # --- choices -------------------------------------------------------------------------------------------------

    def _take_choices(self, choices: object, *, size: int) -> None:
        """Reads a chunk's choices: the one with index 0, or without one in the first place, is the answer."""
        if not isinstance(choices, list) or not isinstance(choices[0], dict):
            raise failure(Reason.MALFORMED)
        for place, choice in enumerate(choices):
            if not isinstance(choice, dict):
                continue
            index = index_of(choice.get("index"))
            if self._are_parts or index == self._answer_index or (place == 0 and index is None):
                self._take_choice(choice)
            else:
                self._keep_further(index, choice, size=size)

    def _keep_further(self, index: int | None, choice: Mapping[str, Any], *, size: int) -> None:
        """Keeps a choice until it is certain whether the first one is an answer, or there is no more room."""
        self._further_room -= size
        if self._further_room < 0 and self._further:
            self._are_parts = self._number_parts()
            self._take_further()
        if self._are_parts or index == self._answer_index:
            self._take_choice(choice)
        elif self._further_room >= 0:
            self.tokens += 1
            self._further.append((index, choice))
        elif index is None:
            raise failure(Reason.ANSWER_TOO_LONG)

    def _number_parts(self) -> bool:
        """Returns True if each further choice has an index of its own, in order, as no two answers would have them."""
        indexes = [index for index, _ in self._further if index is not None]
        is_first = self.tokens - len(self._further) <= 1
        return (
            is_first
            and not self.finished
            and 1 < len(indexes) == len(self._further)
            and indexes == sorted(set(indexes))
        )

    def _take_further(self) -> None:
        """Reads the further choices for what the first one lacks.

        Those with another index are other answers: the first of them counts if the first choice has nothing. But some
        servers number the parts of one answer. Those without an index are the rest of one answer: some servers send
        text and calls in two.
        """
        further, self._further = self._further, []
        indexes = [index for index, _ in further if index is not None]
        if self._are_parts:
            for _, choice in further:
                self._take_choice(choice)
            return
        if indexes and not (self._text or self._calls.calls or self._refused or self._reasoned):
            self._finish, self._answer_index = None, min(indexes)
            for index, choice in further:
                if index == self._answer_index:
                    self._take_choice(choice)
        lacks = {"content": not self._text, "tool_calls": not self._calls.calls}
        for index, choice in further:
            message = choice.get("message") or choice.get("delta")
            if index is None and isinstance(message, dict):
                self._take_message({key: message[key] for key in message if lacks.get(key, True)}, {})
                self._take_finish(choice.get("finish_reason"))

    def _take_choice(self, choice: Mapping[str, Any]) -> None:
        """Reads a chunk's choice: text, tool calls, finish reason. Raises ModelFailure if it reports an error."""
        if choice.get("error"):
            raise event_failure({"error": choice["error"]})
        delta = choice.get("delta") or {}
        if not isinstance(delta, dict):
            raise failure(Reason.MALFORMED)
        if len(delta) == 1 and not choice.get("finish_reason"):  # nearly every chunk is text alone
            content = delta.get("content")
            if content and isinstance(content, str):
                self.tokens += 1
                self._text.add(content)
                return
        self._take_message(delta, choice)

    def _take_message(self, delta: Mapping[str, Any], choice: Mapping[str, Any]) -> None:
        """Reads what is new in a message, and the choice around it."""
        finish = self._take_finish(choice.get("finish_reason"))
        output = self._take_fields(delta, last=finish)
        text, message = choice.get("text"), choice.get("message")
        if text and not delta.get("content"):
            self._text.add(text_of(text))
        if isinstance(message, dict):
            output = self._take_whole(message, last=finish) or output
        if choice.get("usage"):
            self._take_usage(choice["usage"])
        if finish or output or text:
            self.tokens += 1

    def _take_fields(self, message: Mapping[str, Any], *, last: bool, repeats: bool = False) -> bool:
        """Reads the fields of a delta, or of a message, which may repeat them. Returns True if it brought output."""
        content, reasons, refusal = content_of(message.get("content"))
        refusal = refusal or bool(message.get("refusal"))
        calls = message.get("tool_calls") or []
        if message.get("function_call"):
            calls = [{"index": 0, "function": message["function_call"]}]
        if not REASONING_FIELDS.isdisjoint(message):
            reasons = reasons or any(message.get(name) for name in REASONING_FIELDS)
        self._reasoned = self._reasoned or reasons
        self._refused = self._refused or refusal
        if calls:
            self._calls.take(calls, last=last)
        if content:
            self._text.add(content)
        self._beside.add(message, repeats=repeats)
        return bool(content or calls or reasons or refusal)

    def _take_whole(self, message: Mapping[str, Any], *, last: bool) -> bool:
        """Reads a message where a delta should be. Returns True if it brought output."""
        output = self._take_fields({**message, "content": None}, last=True, repeats=True)
        content, reasons, refuses = content_of(message.get("content"))
        self._reasoned, self._refused = self._reasoned or reasons, self._refused or refuses
        self._text.add_new(content, last=last)
        return bool(output or content or reasons or refuses)

    def _take_finish(self, value: object) -> bool:
        """Reads a finish word. Returns True if it is one."""
        if isinstance(value, dict):
            value = value.get("type") or value.get("reason")
        word = value[:_LONGEST_NAME].strip() if isinstance(value, str) else str(value or "")[:_LONGEST_NAME]
        if not word:
            return False
        plain = plain_word(word)
        if plain not in FINISH:
            self._unknown_word = word
            return True
        meaning = FINISH[plain]
        if meaning is not None and (self._finish is None or _RANKS[meaning] > _RANKS[self._finish]):
            self._finish = meaning
        return meaning is not None

    # --- text, calls, usage --------------------------------------------------------------------------------------

    def _take_usage(self, usage: object) -> None:
        """Reads the usage report; a later one counts, for what it reports."""
        if isinstance(usage, dict):
            self._usage = Usage(
                input_tokens=_count(usage, "prompt_tokens", "input_tokens") or self._usage.input_tokens,
                output_tokens=_count(usage, "completion_tokens", "output_tokens") or self._usage.output_tokens,
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
        theirs: set[str] = set()
        for position, call in enumerate(self._calls.calls):
            if not call.name:
                raise failure(Reason.MALFORMED)
            own_id = whole(call.call_id)
            call_id = own_id if own_id and own_id not in taken else self._new_id(position, taken=taken)
            taken.add(call_id)
            kept = packed(
                origin=self._origin,
                call_id="" if own_id in theirs else own_id,
                call=call.beside,
                function=call.beside_function,
                message={} if requests else self._beside.fields,
            )
            theirs.add(own_id)
            requests.append(
                ToolRequest(
                    tool_call_id=call_id, tool=whole(call.name), arguments_json=call.arguments(), provider_json=kept
                )
            )
        self._check_room(requests)
        return tuple(requests)

    def _check_room(self, requests: Sequence[ToolRequest]) -> None:
        """Raises ModelFailure if the message has no room in an event: what is kept is larger there, as JSON."""
        texts = [(call.tool, call.arguments_json, call.provider_json) for call in requests]
        size = sum(len("".join(text).encode()) + _CALL_OVERHEAD for text in texts)
        if len(str(self._text).encode()) + size > _MOST_STORED:
            raise failure(Reason.ANSWER_TOO_LONG)

    def _new_id(self, position: int, *, taken: set[str]) -> str:
        """Returns an id that is not in `taken`, the same for the same request and position."""
        call_id = f"call_{len(self._request.messages)}_{position}"
        while call_id in taken:
            call_id += "_"
        return call_id


def _count(usage: Mapping[str, object], *names: str) -> int:
    """Returns the first count of tokens by these names, MOST_TOKENS at most; 0 if there is none."""
    counts = (usage.get(name) for name in names)
    return next((min(count, MOST_TOKENS) for count in counts if type(count) is int and count > 0), 0)
