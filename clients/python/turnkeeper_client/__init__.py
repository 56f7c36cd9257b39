"""The Python client of Turnkeeper.

async with Client("127.0.0.1:50051") as client:
    session = await client.sessions.create("assistant")
    async for piece in session.stream("What is the capital of France?").text():
        print(piece, end="", flush=True)
"""

from turnkeeper_client.batch import Batch
from turnkeeper_client.client import Client
from turnkeeper_client.credentials import Credentials
from turnkeeper_client.helpers import name_of, text_of
from turnkeeper_client.inbox import ApprovalInbox
from turnkeeper_client.pb.v1.approval_pb2 import ApprovalState
from turnkeeper_client.pb.v1.chat_pb2 import IfBusy, TurnState
from turnkeeper_client.pb.v1.message_pb2 import Role
from turnkeeper_client.resume import ResumePolicy
from turnkeeper_client.session import Session
from turnkeeper_client.streams import EventStream, TurnStream
from turnkeeper_client.text import TextAssembler, TextPiece

__version__ = "0.1.0"

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
    "__version__",
    "name_of",
    "text_of",
]
