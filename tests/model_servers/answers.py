"""Rows of the table: how an answer is written, and where it stands."""

from collections.abc import Sequence

import orjson

from tests.model_servers.streams import (
    CALLS,
    DONE,
    HELLO,
    ONE_CALL,
    PARIS,
    TEXT,
    Stream,
    choices,
    chunk,
    part,
    sse,
    usage,
    whole,
)
from turnkeeper.model.failure import Reason

# Events as the WHATWG standard reads them.
FRAMINGS: Sequence[Stream] = (
    Stream(server="every server", what="LF ends a line", body=sse(*HELLO), text=TEXT),
    Stream(server="any", what="CRLF ends a line", body=sse(*HELLO, end="\r\n\r\n"), text=TEXT),
    Stream(server="any", what="CR ends a line", body=sse(*HELLO, end="\r\r"), text=TEXT),
    Stream(server="any", what="a byte order mark first", body=b"\xef\xbb\xbf" + sse(*HELLO), text=TEXT),
    Stream(server="Spring, Kimi Code", what="no space after `data:`", body=sse(*HELLO, prefix="data:"), text=TEXT),
    Stream(
        server="OpenRouter, LiteLLM",
        what="comments, `event`, `id` and `retry` between the lines, and `data` without any",
        body=sse(*HELLO).replace(
            b"data: {", b": PROCESSING\n\nevent: message\nid: 7\nretry: 9\n\ndata:\n\ndata\n\ndata: {"
        ),
        text=TEXT,
    ),
    Stream(
        server="gateways",
        what="`[DONE]` with spaces around it",
        body=sse(*HELLO).replace(b"[DONE]", b"  [DONE] \t"),
        text=TEXT,
    ),
    Stream(
        server="any",
        what="an event of many `data` lines",
        body=b"".join(
            b"".join(b"data: " + line + b"\n" for line in orjson.dumps(event, option=orjson.OPT_INDENT_2).splitlines())
            + b"\n"
            for event in HELLO
        )
        + DONE,
        text=TEXT,
    ),
    Stream(
        server="Azure AI Foundry, TGI",
        what="the body ends after the finish reason, without `[DONE]`",
        body=sse(*HELLO).removesuffix(DONE),
        text=TEXT,
    ),
    Stream(
        server="any",
        what="the body ends without a finish reason",
        body=sse(*HELLO[:-1]).removesuffix(DONE),
        text=TEXT,
        end=Reason.NO_END,
    ),
    Stream(
        server="any",
        what="`[DONE]` without a finish reason",
        body=sse(*HELLO[:-1]),
        text=TEXT,
        end=Reason.NO_FINISH_REASON,
    ),
    Stream(
        server="byte-level tokenizers",
        what="a character cut between two events, as raw bytes",
        body=sse(
            orjson.dumps(chunk(content="a<b")).replace(b"<b", "🌍".encode()[:2]),
            orjson.dumps(chunk(content="c>b")).replace(b"c>", "🌍".encode()[2:]),
            chunk("stop"),
        ),
        text="a🌍b",
    ),
    Stream(
        server="byte-level tokenizers",
        what="a character cut between two events, as escapes",
        body=sse(
            orjson.dumps(chunk(content="a<")).replace(b"<", rb"\ud83c"),
            orjson.dumps(chunk(content=">b")).replace(b">", rb"\udf0d"),
            chunk("stop"),
        ),
        text="a🌍b",
    ),
    Stream(
        server="byte-level tokenizers",
        what="half a character and no other half: U+FFFD",
        body=sse(orjson.dumps(chunk(content="a<")).replace(b"<", b"\xf0\x9f"), chunk("stop")),
        text="a\ufffd",
    ),
)

# No answer is lost in silence.
SHAPES: Sequence[Stream] = (
    Stream(
        server="servers that ignore `stream`",
        what="one JSON completion instead of events",
        body=orjson.dumps(whole({"content": TEXT})),
        text=TEXT,
    ),
    Stream(
        server="servers that ignore `stream`",
        what="one JSON completion with calls",
        body=orjson.dumps(
            whole(
                {"content": None, "tool_calls": [part(None, "a1", "get_weather", PARIS)]},
                "tool_calls",
            ),
            option=orjson.OPT_INDENT_2,
        ),
        calls=ONE_CALL,
        end=CALLS,
        sent_back=({"id": "a1"},),
    ),
    Stream(
        server="9router",
        what="one JSON completion, then `[DONE]`",
        body=orjson.dumps(whole({"content": TEXT})) + b"\n\n" + DONE,
        text=TEXT,
    ),
    Stream(
        server="simple servers",
        what="JSON lines instead of events",
        body=b"\n".join(orjson.dumps(event) for event in HELLO) + b"\n",
        text=TEXT,
    ),
    Stream(
        server="Gemini gateways",
        what="`message` instead of `delta`, once",
        body=sse(whole({"content": TEXT})),
        text=TEXT,
    ),
    Stream(
        server="WebAI-to-API",
        what="`message` instead of `delta`, with all of the text so far each time",
        body=sse(
            choices({"message": {"content": "Grüße, "}, "finish_reason": None}),
            choices({"message": {"content": "Grüße, Welt"}, "finish_reason": None}),
            choices({"message": {"content": TEXT}, "finish_reason": "stop"}),
        ),
        text=TEXT,
    ),
    Stream(
        server="simple servers",
        what="`message` instead of `delta`, with the next part each time",
        body=sse(
            choices({"message": {"content": "Grüße, "}}),
            choices({"message": {"content": "Welt 🌍"}, "finish_reason": "stop"}),
        ),
        text=TEXT,
    ),
    Stream(
        server="any",
        what="the whole `message` again in the last chunk",
        body=sse(
            *HELLO[:-1], choices({"index": 0, "delta": {}, "message": {"content": TEXT}, "finish_reason": "stop"})
        ),
        text=TEXT,
    ),
    Stream(
        server="legacy completions",
        what="`text` instead of `delta`",
        body=sse(choices({"text": "Grüße, "}), choices({"text": "Welt 🌍", "finish_reason": "stop"})),
        text=TEXT,
    ),
    Stream(
        server="Magistral",
        what="`content` as a list of parts: thoughts, text and references",
        body=sse(
            chunk(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]),
            chunk(content=[{"type": "text", "text": "Grüße, "}, {"type": "reference", "reference_ids": [1]}]),
            chunk("stop", content=[{"type": "text", "text": "Welt 🌍"}]),
        ),
        text=TEXT,
    ),
    Stream(
        server="any, with `n` of 2",
        what="two choices: the one with index 0 counts",
        body=sse(
            choices(
                {"index": 1, "delta": {"content": "Other"}, "finish_reason": None},
                {"index": 0, "delta": {"content": "Grüße, "}, "finish_reason": None},
            ),
            choices({"index": 1, "delta": {"content": "!"}, "finish_reason": "length"}),
            choices({"index": 0, "delta": {"content": "Welt 🌍"}, "finish_reason": None}),
            choices({"index": 0, "delta": {}, "finish_reason": "stop"}),
        ),
        text=TEXT,
    ),
    Stream(
        server="servers that count from 1",
        what="one choice, with index 1",
        body=sse(
            choices({"index": 1, "delta": {"content": TEXT}, "finish_reason": None}),
            choices({"index": 1, "delta": {}, "finish_reason": "stop"}),
        ),
        text=TEXT,
    ),
    Stream(
        server="TGI up to 1.4.3",
        what="the number of the token as the index of the choice",
        body=sse(
            choices({"index": 0, "delta": {"content": "Grüße, "}, "finish_reason": None}),
            choices({"index": 1, "delta": {"content": "Welt "}, "finish_reason": None}),
            choices({"index": 2, "delta": {"content": "🌍"}, "finish_reason": "stop"}),
        ),
        text=TEXT,
    ),
    Stream(
        server="simple servers",
        what="the index of the choice as a text",
        body=sse(
            choices({"index": "0", "delta": {"content": "Grüße, "}}),
            choices({"index": "0", "delta": {"content": "Welt 🌍"}}),
            choices({"index": "0", "delta": {}, "finish_reason": "stop"}),
        ),
        text=TEXT,
    ),
    Stream(
        server="gateways",
        what="text and a call in parts in two choices without index",
        body=sse(
            choices(
                {"delta": {"content": "Let me "}},
                {"delta": {"tool_calls": [part(0, "t1", "get_weather", '{"city"')]}},
            ),
            choices({"delta": {"content": "look."}}, {"delta": {"tool_calls": [part(0, None, None, ':"Paris"}')]}}),
            choices({"delta": {}, "finish_reason": "tool_calls"}, {"delta": {}, "finish_reason": "tool_calls"}),
        ),
        text="Let me look.",
        calls=ONE_CALL,
        end=CALLS,
        sent_back=({"id": "t1"},),
    ),
    Stream(
        server="GitHub Copilot",
        what="text and calls in two choices of one message",
        body=orjson.dumps(
            choices(
                {"message": {"content": "Let me look."}, "finish_reason": "tool_calls"},
                {
                    "message": {"content": None, "tool_calls": [part(None, "t1", "get_weather", PARIS)]},
                    "finish_reason": "tool_calls",
                },
            )
        ),
        text="Let me look.",
        calls=ONE_CALL,
        end=CALLS,
        sent_back=({"id": "t1"},),
    ),
    Stream(
        server="old OpenAI gateways",
        what="`function_call` instead of `tool_calls`",
        body=sse(
            chunk(function_call={"name": "get_weather", "arguments": ""}),
            chunk(function_call={"arguments": '{"city":'}),
            chunk(function_call={"arguments": '"Paris"}'}),
            chunk("function_call"),
        ),
        calls=ONE_CALL,
        end=CALLS,
        sent_back=({"type": "function"},),
    ),
    Stream(
        server="Azure",
        what="a chunk of filter results first, a chunk without `delta`, `delta` null at the end",
        body=sse(
            {"choices": [], "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}]},
            *HELLO[:-1],
            choices({"index": 0, "content_filter_results": {"hate": {"filtered": False}}, "finish_reason": None}),
            choices({"index": 0, "delta": None, "finish_reason": "stop"}),
        ),
        text=TEXT,
    ),
    Stream(
        server="Kimi, Groq",
        what="usage inside the choice, or the finish reason with the last text",
        body=sse(
            *HELLO[:2],
            choices(
                {
                    "index": 0,
                    "delta": {"content": "Welt 🌍"},
                    "finish_reason": "stop",
                    "usage": {"prompt_tokens": 9, "completion_tokens": 4},
                }
            ),
        ),
        text=TEXT,
    ),
    Stream(
        server="any",
        what="tokens counted, but nothing that can be read",
        body=sse(chunk(role="assistant"), chunk(outputs=["Hello"]), chunk("stop"), usage()),
        end=Reason.UNREAD_ANSWER,
    ),
    Stream(
        server="reasoning models",
        what="reasoning alone: an answer without text",
        body=sse(chunk(reasoning_content="Nothing to add."), chunk("stop"), usage()),
    ),
    Stream(
        server="OpenAI",
        what="a refusal",
        body=sse(chunk(refusal="I "), chunk(refusal="will not."), chunk("stop"), usage()),
        end=Reason.REFUSAL,
    ),
    Stream(
        server="simple servers",
        what="numbers and `false` as finish reason, refusal and name of the model",
        body=sse({**chunk(False, content=TEXT, refusal=False), "model": 7}, chunk(1)),
        text=TEXT,
    ),
    Stream(
        server="iFlytek Spark",
        what="`code` 0 and `message` `Success` in each chunk, also in the one of the usage",
        body=sse(
            *({**event, "code": 0, "message": "Success", "sid": "cha000b0003@dx"} for event in HELLO),
            {"code": 0, "message": "Success", "sid": "cha000b0003@dx", "usage": {"prompt_tokens": 9}},
        ),
        text=TEXT,
    ),
    Stream(
        server="gateways",
        what="an empty tool call beside the text",
        body=sse(chunk(content=TEXT, tool_calls=[part(0, None, None, "")]), chunk("stop")),
        text=TEXT,
    ),
    Stream(
        server="llama.cpp up to 2025",
        what="a field `error` in place of an event",
        body=b'error: {"code":500,"message":"failed to decode","type":"server_error"}\n\n' + DONE,
        end=Reason.ERROR_EVENT,
    ),
    Stream(
        server="gateways",
        what="an event of the type `error` with a text",
        body=sse(*HELLO[:-1]).removesuffix(DONE) + b"event: error\ndata: Internal failure.\n\n",
        text=TEXT,
        end=Reason.ERROR_EVENT,
    ),
    Stream(
        server="OpenRouter",
        what="an error object inside the choice",
        body=sse(
            *HELLO[:-1],
            choices({"index": 0, "delta": {}, "error": {"code": 502, "message": "no"}, "finish_reason": "error"}),
        ),
        text=TEXT,
        end=Reason.ERROR_EVENT,
    ),
    Stream(
        server="gateways",
        what="an error object with HTTP 200",
        body=orjson.dumps({"error": {"message": "no", "type": "server_error", "code": 500}}),
        end=Reason.ERROR_EVENT,
    ),
)
