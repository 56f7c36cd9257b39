"""A real conversation of two turns with a real model."""

from tests.demo.heard import Heard, joined, misplaced
from tests.demo.parts import Parts
from tests.demo.program import has_own_model
from tests.demo.report import Step
from turnkeeper_client import Session
from turnkeeper_client.pb.v1.chat_pb2 import TURN_STATE_COMPLETED, TurnState
from turnkeeper_client.pb.v1.message_pb2 import Role

TITLE = "a conversation of two turns with a real model, streamed"
# Tried with the small local model, which knows little; the second makes sense after the first alone.
QUESTIONS = ("What is the capital of France?", "And of Italy?")


async def run(step: Step, parts: Parts) -> None:
    async with parts.client() as client:
        session = await client.sessions.create("assistant")
        step.say("A client opens a session with the agent `assistant` and asks; the answer is shown as it comes.")
        for question in QUESTIONS:
            await _turn(step, session, question)
        messages = [message async for message in session.messages()]
        said = [Role.Name(message.role).removeprefix("ROLE_").lower() for message in messages]
        step.check("the session keeps who spoke", said, expected=["user", "assistant"] * 2)


async def _turn(step: Step, session: Session, question: str) -> None:
    step.begin_text("you")
    step.text(question)
    step.begin_text("assistant")
    heard = Heard()
    stream = session.stream(question)
    async for event in stream:
        step.text(heard.add(event))
    step.end_text()
    turn = stream.turn
    state = TurnState.Name(turn.state) if turn else "none"
    step.check("the turn ended", state, expected=TurnState.Name(TURN_STATE_COMPLETED))
    pieces = heard.of(heard.attempt)
    # The local model writes a word at a time; another one may be faster than its pieces can be told apart.
    step.holds("pieces that it came in", len(pieces) > (0 if has_own_model() else 1), came=len(pieces))
    step.check("pieces out of place", misplaced(pieces), expected=[])
    stored = await anext(session.messages(newest_first=True))
    text = "".join(part.text for part in stored.content).encode()
    step.same_bytes("the text shown is the message stored", joined(pieces), expected=text)
