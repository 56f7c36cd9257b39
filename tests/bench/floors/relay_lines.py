"""F2L: the same relay on the client's `with_streaming_response`, line by line. For information: less typical code."""

import sys
from collections.abc import AsyncIterator
from typing import Any

import orjson
from grpc import aio
from openai import AsyncOpenAI

from tests.bench.floors.serving import serve
from turnkeeper.pb.v1 import chat_pb2, chat_pb2_grpc, event_pb2, message_pb2


class Relay(chat_pb2_grpc.ChatServiceServicer):
    """Serves StreamMessage without the client's types."""

    def __init__(self, model_url: str) -> None:
        self._client = AsyncOpenAI(base_url=model_url, api_key="none")

    async def StreamMessage(  # noqa: N802 - the RPC's name
        self, request: chat_pb2.StreamMessageRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[chat_pb2.StreamMessageResponse]:
        texts = []
        async with self._client.chat.completions.with_streaming_response.create(
            model="bench",
            messages=[
                {"role": "system", "content": "You are brief."},
                {"role": "user", "content": request.content[0].text},
            ],
            stream=True,
        ) as response:
            async for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                chunk = orjson.loads(line[6:])
                if chunk["choices"] and (text := chunk["choices"][0]["delta"].get("content")):
                    texts.append(text)
                    delta = event_pb2.ContentDelta(text=text)
                    yield chat_pb2.StreamMessageResponse(events=[event_pb2.Event(content_delta=delta)])
        content = [message_pb2.Part(text="".join(texts))]
        whole = event_pb2.MessageCompleted(content=content)
        yield chat_pb2.StreamMessageResponse(
            events=[event_pb2.Event(message_completed=whole)],
            turn=chat_pb2.Turn(state=chat_pb2.TURN_STATE_COMPLETED, answer=content),
        )


if __name__ == "__main__":
    relay = Relay(sys.argv[1])
    serve(lambda server: chat_pb2_grpc.add_ChatServiceServicer_to_server(relay, server))
