"""The lines that `make run` prints, ready to be pasted in this folder. A test pastes them."""

import json
import os
import secrets
import shlex
from pathlib import Path

from turnkeeper.model.local import MODEL_NAME
from turnkeeper_client.pb.v1.approval_pb2 import Approval

FIRST_QUESTION = "What is the capital of France?"
FIRST_ORDER = "Tell Ada that lunch is at noon."


def page(address: str, data: Path, *, own_model: bool) -> str:
    """Returns the whole page. `own_model`: the caller's variables name one; else the clerk's is scripted."""
    suffix = secrets.token_hex(2)  # sessions of their own, each time
    outbox = data / "outbox.jsonl"
    return f"""\
Turnkeeper serves on {address}; Ctrl-C ends it.
  data           {data}: {"" if os.environ.get("MONGODB_URI") else "the database, "}server.log, and outbox.jsonl,
                 which the tool `send_message` writes to
  assistant      talks; its model is {"yours" if own_model else f"{MODEL_NAME}, very small, local"}
  clerk          has tools; its model is {"yours" if own_model else "a script, tests/demo/clerk.toml"}

Lines to paste in another terminal, in this folder.

# The services and their methods
{grpcurl(address, "list")}
{grpcurl(address, "describe turnkeeper.v1.ChatService")}

# Send a message to a real model; the answer is streamed
{talk(address, f"talk-{suffix}")}

# Let the clerk send a message: the turn waits; lines that decide appear here
{order(address, f"order-{suffix}")}

# Afterwards: the messages, and the effect of the tool
{buf(address, "SessionService/ListMessages", sessionId=f"order-{suffix}")}
{grpcurl(address, "turnkeeper.v1.SessionService/ListSessions")}
cat {outbox}

# The same from Python
{python_talk(address)}

{python_order(address)}
"""


def buf(address: str, method: str, **request: object) -> str:
    """Returns a call by `buf curl`, which reads the schema from the server."""
    data = f" --data {shlex.quote(json.dumps(request, ensure_ascii=False))}" if request else ""
    return f".venv/bin/buf curl --protocol grpc --http2-prior-knowledge{data} http://{address}/turnkeeper.v1.{method}"


def grpcurl(address: str, method: str, **request: object) -> str:
    """Returns a call by `grpcurl`, which does the same."""
    data = f"-d {shlex.quote(json.dumps(request, ensure_ascii=False))} " if request else ""
    return f".venv/bin/grpcurl -plaintext {data}{address} {method}"


def talk(address: str, session: str) -> str:
    """Returns a call that creates a session and streams an answer."""
    return buf(
        address,
        "ChatService/StreamMessage",
        sessionId=session,
        requestId="1",
        createSession={"agent": "assistant"},
        content=[{"text": FIRST_QUESTION}],
    )


def order(address: str, session: str) -> str:
    """Returns a call that sends a message whose turn waits for an approval."""
    return buf(
        address,
        "ChatService/SendMessage",
        sessionId=session,
        requestId="1",
        createSession={"agent": "clerk"},
        content=[{"text": FIRST_ORDER}],
    )


def decision(address: str, approval: Approval, answer: str) -> str:
    """Returns a call that decides about exactly the arguments that the approval shows."""
    return buf(
        address,
        "ApprovalService/DecideApproval",
        approvalId=approval.approval_id,
        decision=f"APPROVAL_DECISION_{answer}",
        argumentsHash=approval.arguments_hash,
    )


def python_talk(address: str) -> str:
    return f"""\
.venv/bin/python - <<'END'
import asyncio
from turnkeeper_client import Client

async def main() -> None:
    async with Client("{address}") as client:
        session = await client.sessions.create("assistant")
        async for piece in session.stream("{FIRST_QUESTION}").text():
            print(piece, end="", flush=True)
        print()

asyncio.run(main())
END"""


def python_order(address: str) -> str:
    return f"""\
.venv/bin/python - <<'END'
import asyncio
from turnkeeper_client import Client

async def main() -> None:
    async with Client("{address}") as client:
        session = await client.sessions.create("clerk")
        stream = session.stream("{FIRST_ORDER}")
        async for event in stream:
            print(event.sequence, event.WhichOneof("payload"))
        approval = await client.approvals.get(stream.turn.pending[0].approval_id)
        print("May this run?", approval.tool, approval.arguments_json)
        await client.approvals.approve(approval)
        async for piece in stream.text():
            print(piece, end="", flush=True)
        print()

asyncio.run(main())
END"""
