"""A bridge for browsers: sessions over HTTP, answers as server-sent events.

    pip install fastapi uvicorn
    uvicorn fastapi_bridge:app

A browser that loses its connection sends the same message with the same `request_id` again: it attaches to the turn,
and sends nothing twice. An event `restart` means: clear what was shown of the answer, the text after it is exact.
Put your own sign-in in front of it: everybody who reaches it may talk and approve.
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from turnkeeper_client import Client
from turnkeeper_client.errors import NotFound, SessionError, TransportError, TurnkeeperError
from turnkeeper_client.pb.v1.chat_pb2 import TurnState

ADDRESS = "TURNKEEPER_CLIENT_ADDRESS"


class NewSession(BaseModel):
    agent: str


class NewMessage(BaseModel):
    text: str
    request_id: str


class Decision(BaseModel):
    approve: bool
    arguments_hash: str
    reason: str = ""


@asynccontextmanager
async def _connected(app: FastAPI) -> AsyncIterator[None]:
    async with Client(os.environ.get(ADDRESS, "127.0.0.1:50051")) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=_connected)


@app.exception_handler(TurnkeeperError)
async def _failed(_request: Request, error: TurnkeeperError) -> JSONResponse:
    status = 404 if isinstance(error, NotFound) else 503 if isinstance(error, TransportError) else 409
    return JSONResponse({"error": str(error)}, status)


@app.post("/sessions")
async def create_session(wanted: NewSession) -> dict[str, str]:
    return {"session_id": (await app.state.client.sessions.create(wanted.agent)).id}


@app.post("/sessions/{session_id}/messages")
async def send_message(session_id: str, message: NewMessage) -> StreamingResponse:
    await app.state.client.sessions.get(session_id)  # 404 before the stream begins
    return StreamingResponse(_events(app.state.client, session_id, message), media_type="text/event-stream")


@app.post("/approvals/{approval_id}")
async def decide(approval_id: str, decision: Decision) -> dict[str, str]:
    """The hash is the one that the page has shown: nothing else is approved."""
    approvals = app.state.client.approvals
    approval = await approvals.get(approval_id)
    if approval.arguments_hash != decision.arguments_hash:
        raise HTTPException(409, "the arguments have changed since they were shown")
    verb = approvals.approve if decision.approve else approvals.reject
    return {"state": str((await verb(approval, reason=decision.reason)).state)}


async def _events(client: Client, session_id: str, message: NewMessage) -> AsyncIterator[str]:
    stream = client.session(session_id).stream(message.text, request_id=message.request_id)
    try:
        async for piece in stream.text():
            if piece.restart:
                yield _event("restart", {})
            yield _event("text", {"text": piece[:]})
    except (SessionError, TransportError) as error:
        yield _event("failed", {"error": str(error)})
        return
    if stream.turn is not None:
        pending = [await client.approvals.get(item.approval_id) for item in stream.turn.pending if item.approval_id]
        asks = [
            {
                "approval_id": approval.approval_id,
                "tool": approval.tool,
                "arguments_json": approval.arguments_json,
                "arguments_hash": approval.arguments_hash,
            }
            for approval in pending
        ]
        yield _event("turn", {"state": TurnState.Name(stream.turn.state), "approvals": asks})


def _event(name: str, data: dict[str, object]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
