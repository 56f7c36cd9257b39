"""The Python client of Turnkeeper.

async with Client("127.0.0.1:50051") as client:
    session = await client.sessions.create("assistant")
    async for piece in session.stream("What is the capital of France?").text():
        if piece.restart:
            print("\\n(the answer begins anew)")
        print(piece, end="", flush=True)
"""

from turnkeeper_client.batch import Batch
from turnkeeper_client.client import Client
from turnkeeper_client.credentials import Credentials
from turnkeeper_client.resume import ResumePolicy
from turnkeeper_client.session import Session
from turnkeeper_client.streams import EventStream, TurnStream
from turnkeeper_client.text import TextAssembler, TextPiece

__all__ = [
    "Batch",
    "Client",
    "Credentials",
    "EventStream",
    "ResumePolicy",
    "Session",
    "TextAssembler",
    "TextPiece",
    "TurnStream",
]
