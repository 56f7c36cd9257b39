"""F5: an agent SDK with its SQLite session behind grpc.aio: a response for each delta, the conversation on disk.

It runs in an environment of its own (agents.lock), without the service's packages: the server's options are given.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvloop
from agents import Agent, OpenAIChatCompletionsModel, Runner, SQLiteSession, set_tracing_disabled
from grpc import aio
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent

from turnkeeper.pb.v1 import chat_pb2, chat_pb2_grpc, event_pb2, message_pb2


class Chat(chat_pb2_grpc.ChatServiceServicer):
    """Serves StreamMessage as the SDK's own guide does it."""

    def __init__(self, model_url: str, database: str) -> None:
        client = AsyncOpenAI(base_url=model_url, api_key="none")
        model = OpenAIChatCompletionsModel(model="bench", openai_client=client)
        self._agent = Agent(name="bench", instructions="You are brief.", model=model)
        self._database = database

    async def StreamMessage(  # noqa: N802 - the RPC's name
        self, request: chat_pb2.StreamMessageRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[chat_pb2.StreamMessageResponse]:
        session = SQLiteSession(request.session_id, self._database)
        try:
            run = Runner.run_streamed(self._agent, request.content[0].text, session=session)
            async for event in run.stream_events():
                if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent):
                    delta = event_pb2.ContentDelta(text=event.data.delta)
                    yield chat_pb2.StreamMessageResponse(events=[event_pb2.Event(content_delta=delta)])
        finally:
            session.close()
        content = [message_pb2.Part(text=run.final_output)]
        whole = event_pb2.MessageCompleted(content=content)
        yield chat_pb2.StreamMessageResponse(
            events=[event_pb2.Event(message_completed=whole)],
            turn=chat_pb2.Turn(state=chat_pb2.TURN_STATE_COMPLETED, answer=content),
        )


async def main(model_url: str, database: str, options: str) -> None:
    set_tracing_disabled(True)
    server = aio.server(options=json.loads(options))
    chat_pb2_grpc.add_ChatServiceServicer_to_server(Chat(model_url, database), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"floor: serving on 127.0.0.1:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:4]))
