"""Rows of the table: how an answer ends."""

from collections.abc import Sequence

import orjson

from tests.model_servers.streams import CALLS, LENGTH, ONE_CALL, PARIS, STOP, TEXT, Stream, calls, chunk, part, sse
from turnkeeper.domain.message import FinishReason
from turnkeeper.model.failure import Reason


def _ending(server: str, word: object, end: FinishReason | Reason, *, text: str = TEXT, then: object = None) -> Stream:
    """Returns a text with this finish reason, and perhaps another one after it."""
    name = word if isinstance(word, str) else orjson.dumps(word).decode()
    after = [] if then is None else [chunk(then)]
    what = f"`{name}`" + (f", then `{then}`" if then else "") + ("" if text else ", without any content")
    return Stream(
        server=server,
        what=what,
        body=sse(*([chunk(content=text)] if text else [chunk(role="assistant")]), chunk(word), *after),
        text=text,
        end=end,
    )


ENDINGS: Sequence[Stream] = (
    _ending("Together, TGI", "eos", STOP),
    _ending("TGI", "eos_token", STOP),
    _ending("gateways", "end", STOP),
    _ending("Anthropic and Bedrock gateways", "end_turn", STOP),
    _ending("Bedrock gateways", "stop_sequence", STOP),
    _ending("Gemini gateways", "STOP", STOP),
    _ending("Vertex gateways", "FINISH_REASON_STOP", STOP),
    _ending("SGLang", {"type": "stop", "matched": 151645}, STOP),
    _ending("Anthropic gateways", "max_tokens", LENGTH),
    _ending("Gemini gateways", "MAX_TOKENS", LENGTH),
    _ending("Mistral", "model_length", LENGTH),
    _ending("Zhipu", "sensitive", Reason.CONTENT_FILTER),
    _ending("Gemini gateways", "SAFETY", Reason.CONTENT_FILTER),
    _ending("Azure", "content_filter", Reason.CONTENT_FILTER, then="stop"),
    _ending("SGLang", "length", LENGTH, then="stop"),
    _ending("Anthropic gateways", "refusal", Reason.REFUSAL),
    _ending("DeepSeek", "insufficient_system_resource", Reason.BAD_FINISH_REASON),
    _ending("vLLM", "abort", Reason.BAD_FINISH_REASON),
    _ending("any", "an_unknown_word", STOP),
    _ending("any", "an_unknown_word", Reason.BAD_FINISH_REASON, text=""),
    _ending("DashScope", "null", STOP, then="stop"),
    Stream(
        server="Anthropic gateways",
        what="`tool_use`",
        body=sse(calls(part(0, "toolu_1", "get_weather", PARIS)), chunk("tool_use")),
        calls=ONE_CALL,
        end=CALLS,
        sent_back=({"id": "toolu_1"},),
    ),
    Stream(
        server="any",
        what="`length` inside a call",
        body=sse(calls(part(0, "a", "get_weather", '{"city":"Pa')), chunk("length")),
        end=Reason.TOOL_CALL_CUT_SHORT,
    ),
)
