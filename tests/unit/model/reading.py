"""Reads an answer's bytes without a network."""

from collections.abc import Sequence
from dataclasses import dataclass

from turnkeeper.domain.message import FinishReason, Message, Role
from turnkeeper.model.answer_reader import AnswerReader
from turnkeeper.model.contract import ModelAnswer, ModelFailure, ModelRequest
from turnkeeper.model.failure import Reason

REQUEST = ModelRequest(model="asked-for", messages=(Message(role=Role.USER, text="hello"),))


@dataclass(frozen=True, slots=True)
class Read:
    """What became of an answer."""

    text: str
    calls: tuple[tuple[str, str], ...]
    end: FinishReason | Reason


def answer_of(parts: Sequence[bytes], *, texts: list[str] | None = None) -> ModelAnswer:
    """Returns the answer in a body that ends in order; adds its text to `texts` as it arrives. Raises ModelFailure."""
    reader = AnswerReader(REQUEST, max_answer_bytes=200 * 1024)
    texts = [] if texts is None else texts
    try:
        for part in parts:
            reader.feed(part)
            texts.append(reader.new_text())
            if reader.done:
                break
        else:
            reader.end()
    finally:
        texts.append(reader.new_text())
    return reader.answer()


def read(parts: Sequence[bytes]) -> Read:
    """Returns what becomes of an answer in these parts. Raises AssertionError if its text is not that of its deltas."""
    texts: list[str] = []
    try:
        answer = answer_of(parts, texts=texts)
    except ModelFailure as failure:
        return Read("".join(texts), (), Reason(failure.detail.metadata["reason"]))
    assert answer.text == "".join(texts)
    calls = tuple((call.tool, call.arguments_json) for call in answer.tool_requests)
    return Read(answer.text, calls, answer.finish_reason)
