"""Shows a conversation of two turns with a real model."""

from tests.demo.parts import Parts
from tests.demo.program import has_own_model
from tests.demo.received import Received, joined, misplaced
from tests.demo.report import Step
from turnkeeper_client import Session
from turnkeeper_client.pb.v1.chat_pb2 import TURN_STATE_COMPLETED, TurnState
from turnkeeper_client.pb.v1.message_pb2 import Role

TITLE = "a conversation of two turns with a real model, streamed"
# Tried with the small local model, which knows little; the second question needs the first.
QUESTIONS = ("What is the capital of France?", "And of Italy?")


async def run(step: Step, parts: Parts) -> None:
    async with parts.client() as client:
        session = await client.sessions.create("assistant")
        step.describe("A client opens a session with the agent `assistant` and asks; the answer is streamed.")
        for question in QUESTIONS:
            await _turn(step, session, question)
        messages = [message async for message in session.messages()]
        roles = [Role.Name(message.role).removeprefix("ROLE_").lower() for message in messages]
        step.check("the roles of the stored messages", roles, expected=["user", "assistant"] * 2)


async def _turn(step: Step, session: Session, question: str) -> None:
    step.begin_text("you")
    step.text(question)
    step.begin_text("assistant")
    received = Received()
    stream = session.stream(question)
    async for event in stream:
        step.text(received.add(event))
    step.end_text()
    turn = stream.turn
    state = TurnState.Name(turn.state) if turn else "none"
    step.check("the turn ended", state, expected=TurnState.Name(TURN_STATE_COMPLETED))
    deltas = received.of(received.attempt)
    # The local model writes a word at a time; a faster one may need one delta alone.
    step.holds("deltas of the answer", len(deltas) > (0 if has_own_model() else 1), came=len(deltas))
    step.check("deltas out of place", misplaced(deltas), expected=[])
    stored = await anext(session.messages(newest_first=True))
    text = "".join(part.text for part in stored.content).encode()
    step.same_bytes("the streamed text is the stored message", joined(deltas), expected=text)
