"""The same client without asyncio: for scripts, threads, notebooks and web frameworks that are not asynchronous.

with Client("127.0.0.1:50051") as client:
    session = client.sessions.create("assistant")
    for piece in session.stream("What is the capital of France?").text():
        print(piece, end="", flush=True)

It calls over gRPC's synchronous channels, so it may be used beside a running event loop, and by any number of threads.
Errors, messages and helpers are those of `turnkeeper_client`.
"""

from turnkeeper_client.batch import Batch
from turnkeeper_client.credentials import Credentials
from turnkeeper_client.helpers import name_of, text_of
from turnkeeper_client.pb.v1.approval_pb2 import ApprovalState
from turnkeeper_client.pb.v1.chat_pb2 import IfBusy, TurnState
from turnkeeper_client.pb.v1.message_pb2 import Role
from turnkeeper_client.resume import ResumePolicy
from turnkeeper_client.sync.client import Client
from turnkeeper_client.sync.inbox import ApprovalInbox
from turnkeeper_client.sync.session import Session
from turnkeeper_client.sync.streams import EventStream, TurnStream
from turnkeeper_client.text import TextAssembler, TextPiece

__all__ = [
    "ApprovalInbox",
    "ApprovalState",
    "Batch",
    "Client",
    "Credentials",
    "EventStream",
    "IfBusy",
    "ResumePolicy",
    "Role",
    "Session",
    "TextAssembler",
    "TextPiece",
    "TurnState",
    "TurnStream",
    "name_of",
    "text_of",
]
