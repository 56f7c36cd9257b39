"""Rows of the table: tool calls, what comes with them, and which part belongs to which call."""

from collections.abc import Sequence

import orjson

from tests.model_servers.streams import (
    CALLS,
    LONG_ID,
    ONE_CALL,
    PARIS,
    ROME,
    SIGNATURE,
    TWO_CALLS,
    Stream,
    calls,
    chunk,
    part,
    sse,
    usage,
)

# What came with a tool call goes back with it.
ROUND_TRIPS: Sequence[Stream] = (
    Stream(
        server="OpenAI",
        what="arguments in parts, found by their index",
        body=sse(
            chunk(role="assistant", content=None),
            calls(part(0, "call_abc123", "get_weather", "")),
            calls(part(0, None, None, '{"city":')),
            calls(part(0, None, None, '"Paris"}')),
            chunk("tool_calls"),
            usage(),
        ),
        calls=ONE_CALL,
        end=CALLS,
        sent_back=({"id": "call_abc123", "type": "function"},),
    ),
    Stream(
        server="Mistral",
        what="takes back only its own ids, of nine characters",
        body=sse(
            chunk(role="assistant", content=""),
            calls(part(0, "D681PevKs", "get_weather", PARIS), finish="tool_calls"),
        ),
        calls=ONE_CALL,
        end=CALLS,
        sent_back=({"id": "D681PevKs", "type": "function"},),
    ),
    Stream(
        server="LiteLLM",
        what="hides a model's signature in an id of 800 characters and more",
        body=sse(calls(part(0, LONG_ID, "get_weather", PARIS)), chunk("tool_calls")),
        calls=ONE_CALL,
        end=CALLS,
        sent_back=({"id": LONG_ID, "type": "function"},),
    ),
    Stream(
        server="LiteLLM",
        what="puts `provider_specific_fields` beside a call, inside its function, and beside the message",
        body=sse(
            calls(
                {
                    "index": 0,
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": PARIS, "provider_specific_fields": {"x": 1}},
                    "provider_specific_fields": {"thought_signature": SIGNATURE},
                }
            ),
            chunk(provider_specific_fields={"thought_signatures": [SIGNATURE]}),
            chunk("tool_calls"),
        ),
        calls=ONE_CALL,
        end=CALLS,
        sent_back=(
            {
                "id": "call_1",
                "provider_specific_fields": {"thought_signature": SIGNATURE},
                "function": {"provider_specific_fields": {"x": 1}},
            },
        ),
        message_back={"provider_specific_fields": {"thought_signatures": [SIGNATURE]}},
    ),
    Stream(
        server="Gemini",
        what="no index; the thought's signature in `extra_content`, needed by the next request; ends with `stop`",
        body=sse(
            chunk(
                role="assistant",
                tool_calls=[
                    part(
                        None,
                        "function-call-1",
                        "get_weather",
                        PARIS,
                        extra_content={"google": {"thought_signature": SIGNATURE}},
                    )
                ],
            ),
            calls(part(None, "function-call-2", "get_weather", ROME)),
            chunk("stop", role="assistant"),
        ),
        calls=TWO_CALLS,
        end=CALLS,
        sent_back=(
            {"id": "function-call-1", "extra_content": {"google": {"thought_signature": SIGNATURE}}},
            {"id": "function-call-2"},
        ),
    ),
    Stream(
        server="Gemini",
        what="the signature in a part of its own, after the arguments",
        body=sse(
            calls(part(None, "function-call-1", "get_weather", '{"city":')),
            calls(part(None, None, None, '"Paris"}')),
            calls({"extra_content": {"google": {"thought_signature": SIGNATURE}}}),
            chunk("stop"),
        ),
        calls=ONE_CALL,
        end=CALLS,
        sent_back=({"id": "function-call-1", "extra_content": {"google": {"thought_signature": SIGNATURE}}},),
    ),
    Stream(
        server="Vertex AI",
        what="the signature under a name of its own",
        body=sse(
            calls(part(0, "call_7", "get_weather", PARIS, extra_content={"vertex": {"thought_signature": SIGNATURE}})),
            chunk("tool_calls"),
        ),
        calls=ONE_CALL,
        end=CALLS,
        sent_back=({"id": "call_7", "extra_content": {"vertex": {"thought_signature": SIGNATURE}}},),
    ),
    Stream(
        server="OpenRouter",
        what="`reasoning_details` in parts beside the calls, signed or encrypted; wants them back with the message",
        body=sse(
            b'{"type":"ping"}',
            chunk(reasoning="Let ", reasoning_details=[{"type": "reasoning.text", "text": "Let ", "index": 0}]),
            chunk(reasoning="me.", reasoning_details=[{"type": "reasoning.text", "text": "me.", "index": 0}]),
            chunk(reasoning_details=[{"type": "reasoning.text", "signature": "sig", "index": 0}]),
            chunk(reasoning_details=[{"type": "reasoning.encrypted", "data": SIGNATURE, "id": "tool_1", "index": 1}]),
            calls(part(0, "tool_1", "get_weather", PARIS)),
            chunk("tool_calls"),
        ),
        calls=ONE_CALL,
        end=CALLS,
        sent_back=({"id": "tool_1"},),
        message_back={
            "reasoning": "Let me.",
            "reasoning_details": [
                {"type": "reasoning.text", "text": "Let me.", "index": 0, "signature": "sig"},
                {"type": "reasoning.encrypted", "data": SIGNATURE, "id": "tool_1", "index": 1},
            ],
        },
    ),
    Stream(
        server="DeepSeek, Kimi",
        what="`reasoning_content` before the calls, without which the next request is refused",
        body=sse(
            chunk(role="assistant", content=None, reasoning_content="The user "),
            chunk(content=None, reasoning_content="asks."),
            calls(part(0, "call_00_a", "get_weather", "")),
            calls(part(0, None, None, PARIS)),
            chunk("tool_calls", content="", reasoning_content=None),
        ),
        calls=ONE_CALL,
        end=CALLS,
        sent_back=({"id": "call_00_a"},),
        message_back={"reasoning_content": "The user asks."},
    ),
    Stream(
        server="Kimi, vLLM",
        what="the same ids in each answer, made of the tool's name and a number",
        body=sse(calls(part(0, "functions.get_weather:0", "get_weather", PARIS)), chunk("tool_calls")),
        calls=ONE_CALL,
        end=CALLS,
        sent_back=({"id": "functions.get_weather:0"},),
    ),
)

# Which part belongs to which call.
PARTS: Sequence[Stream] = (
    Stream(
        server="vLLM",
        what="two calls interleaved by index",
        body=sse(
            calls(part(0, "a", "get_weather", '{"city"'), part(1, "b", "get_weather", '{"city"')),
            calls(part(1, None, None, ':"Rome"}'), part(0, None, None, ':"Paris"}')),
            chunk("tool_calls"),
        ),
        calls=TWO_CALLS,
        end=CALLS,
        sent_back=({"id": "a"}, {"id": "b"}),
    ),
    Stream(
        server="Ollama, Dynamo, SGLang",
        what="index 0 for every call",
        body=sse(
            calls(part(0, "a", "get_weather", PARIS)),
            calls(part(0, "b", "get_weather", ROME)),
            chunk("tool_calls"),
        ),
        calls=TWO_CALLS,
        end=CALLS,
        sent_back=({"id": "a"}, {"id": "b"}),
    ),
    Stream(
        server="old Ollama",
        what="index 0 for every call, and no ids",
        body=sse(
            calls(part(0, None, "get_weather", PARIS)),
            calls(part(0, None, "get_weather", ROME)),
            chunk("stop"),
        ),
        calls=TWO_CALLS,
        end=CALLS,
    ),
    Stream(
        server="Gemini gateways",
        what="interleaved without index, by ids",
        body=sse(
            calls(part(None, "a", "get_weather", '{"city"')),
            calls(part(None, "b", "get_weather", '{"city"')),
            calls(part(None, "a", None, ':"Paris"}')),
            calls(part(None, "b", None, ':"Rome"}')),
            chunk("tool_calls"),
        ),
        calls=TWO_CALLS,
        end=CALLS,
        sent_back=({"id": "a"}, {"id": "b"}),
    ),
    Stream(
        server="gateways",
        what="neither index nor ids: a name after a whole object begins a call",
        body=sse(
            calls(part(None, None, "get_weather", '{"city":')),
            calls(part(None, None, None, '"Paris"}')),
            calls(part(None, None, "get_weather", ROME)),
            chunk("tool_calls"),
        ),
        calls=TWO_CALLS,
        end=CALLS,
    ),
    Stream(
        server="gateways",
        what="neither index nor ids: places in the list",
        body=sse(
            calls(part(None, None, "get_weather", ""), part(None, None, "get_time", "")),
            calls(part(None, None, None, PARIS), part(None, None, None, ROME)),
            chunk("tool_calls"),
        ),
        calls=(("get_weather", PARIS), ("get_time", ROME)),
        end=CALLS,
    ),
    Stream(
        server="vLLM with GLM, LM Studio",
        what="id and name in each part",
        body=sse(
            calls(part(0, "a", "get_weather", '{"city"')),
            calls(part(0, "a", "get_weather", ':"Paris"}')),
            calls(part(0, "a", "get_weather", ""), finish="tool_calls"),
        ),
        calls=ONE_CALL,
        end=CALLS,
        sent_back=({"id": "a"},),
    ),
    Stream(
        server="gateways",
        what="another id in each part",
        body=sse(
            calls(part(0, "a1", "get_weather", '{"city"')),
            calls(part(0, "a2", None, ':"Pa')),
            calls(part(0, "a3", None, 'ris"}')),
            chunk("tool_calls"),
        ),
        calls=ONE_CALL,
        end=CALLS,
        sent_back=({"id": "a1"},),
    ),
    Stream(
        server="SGLang, vLLM with GLM",
        what="the last chunk repeats everything",
        body=sse(
            calls(part(0, "a", "get_weather", '{"city"')),
            calls(part(0, None, None, ':"Paris"}')),
            calls(part(1, "b", "get_weather", ROME)),
            calls(part(0, "a", "get_weather", PARIS), part(1, "b", "get_weather", ROME), finish="tool_calls"),
        ),
        calls=TWO_CALLS,
        end=CALLS,
        sent_back=({"id": "a"}, {"id": "b"}),
    ),
    Stream(
        server="gateways",
        what="the last chunk repeats everything, without ids and index",
        body=sse(
            calls(part(0, "a", "get_weather", PARIS)),
            calls(part(1, "b", "get_weather", ROME)),
            calls(
                part(None, None, "get_weather", '{"city": "Paris"}'),
                part(None, None, "get_weather", ROME),
                finish="tool_calls",
            ),
        ),
        calls=TWO_CALLS,
        end=CALLS,
        sent_back=({"id": "a"}, {"id": "b"}),
    ),
    Stream(
        server="gateways",
        what="all of the arguments so far in each part",
        body=sse(
            calls(part(0, "a", "get_weather", '{"city"')),
            calls(part(0, "a", None, '{"city":"Pa')),
            calls(part(0, "a", None, PARIS)),
            chunk("tool_calls"),
        ),
        calls=ONE_CALL,
        end=CALLS,
        sent_back=({"id": "a"},),
    ),
    Stream(
        server="Anthropic gateways",
        what="an empty object first, then the arguments",
        body=sse(
            calls(part(0, "toolu_1", "get_weather", "{}")),
            calls(part(0, None, None, '{"city":')),
            calls(part(0, None, None, '"Paris"}')),
            chunk("tool_calls"),
        ),
        calls=ONE_CALL,
        end=CALLS,
        sent_back=({"id": "toolu_1"},),
    ),
    Stream(
        server="some models of Qwen and Llama",
        what="arguments encoded twice",
        body=sse(calls(part(0, "a", "get_weather", orjson.dumps(PARIS).decode())), chunk("tool_calls")),
        calls=ONE_CALL,
        end=CALLS,
        sent_back=({"id": "a"},),
    ),
    Stream(
        server="Ollama, llama.cpp",
        what="arguments as an object; none at all for a tool without any",
        body=sse(
            calls(part(0, "a", "get_weather", {"city": "Paris"})),
            calls(part(1, "b", "get_time", None)),
            chunk("tool_calls"),
        ),
        calls=(("get_weather", PARIS), ("get_time", "{}")),
        end=CALLS,
        sent_back=({"id": "a"}, {"id": "b"}),
    ),
    Stream(
        server="gateways in PHP",
        what="an empty list as arguments",
        body=sse(calls(part(0, "a", "get_time", [])), chunk("tool_calls")),
        calls=(("get_time", "{}"),),
        end=CALLS,
        sent_back=({"id": "a"},),
    ),
    Stream(
        server="any",
        what="two calls that are the same are two calls",
        body=sse(
            calls(part(0, "a", "get_weather", PARIS), part(1, "b", "get_weather", PARIS)),
            chunk("tool_calls"),
        ),
        calls=(("get_weather", PARIS), ("get_weather", PARIS)),
        end=CALLS,
        sent_back=({"id": "a"}, {"id": "b"}),
    ),
    Stream(
        server="any",
        what="one id for two calls: both are kept, and the id goes back with the first",
        body=sse(
            calls(part(0, "call_0", "get_weather", PARIS), part(1, "call_0", "get_weather", ROME)),
            chunk("tool_calls"),
        ),
        calls=TWO_CALLS,
        end=CALLS,
        sent_back=({"id": "call_0"}, {}),
    ),
    Stream(
        server="any",
        what="two objects for one call: the model's mistake, not ours to mend",
        body=sse(
            calls(part(0, "a", "get_weather", PARIS)),
            calls(part(0, None, None, ROME)),
            chunk("tool_calls"),
        ),
        calls=(("get_weather", PARIS + ROME),),
        end=CALLS,
        sent_back=({"id": "a"},),
    ),
)
