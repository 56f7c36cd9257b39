"""A tool call that waits for a person, the person's decision, the result."""

from datetime import timedelta

from tests.demo.heard import Heard
from tests.demo.parts import Parts
from tests.demo.report import Step
from turnkeeper_client import Client, Session
from turnkeeper_client.pb.v1.approval_pb2 import ApprovalState
from turnkeeper_client.pb.v1.chat_pb2 import Turn, TurnState

TITLE = "a tool call waits for a person, who approves it"
REQUEST = "Tell Ada that lunch is at noon."
ARGUMENTS = '{"text":"lunch is at noon","to":"Ada"}'
RESULT = "Done: Sent to Ada."


async def run(step: Step, parts: Parts) -> None:
    async with parts.client() as client, parts.client() as approver:
        session = await client.sessions.create("clerk")
        step.say("The agent `clerk` has a tool that sends a message for good. Its policy: a person decides first.")
        step.begin_text("you")
        step.text(REQUEST)
        turn = await session.send(REQUEST)
        await _not_yet(step, session, sent=len(parts.outbox("Ada")))
        step.check("the turn waits", TurnState.Name(turn.state), expected="TURN_STATE_AWAITING_APPROVAL")
        await _approve(step, approver, turn)
        ended = await session.turn(turn.turn_id, wait=timedelta(seconds=20))
        step.check("the turn ended", TurnState.Name(ended.state), expected="TURN_STATE_COMPLETED")
        text = "".join(part.text for part in ended.answer)
        step.begin_text("clerk")
        step.text(text)
        step.check("the answer carries the tool's result", text, expected=RESULT)
        await _once(step, parts, session)


async def _not_yet(step: Step, session: Session, *, sent: int) -> None:
    heard = await log_of(session)
    step.check("messages sent before anybody decided (lines in the tool's file)", sent, expected=0)
    step.check("`tool_started` in the event log", heard.has("tool_started"), expected=False)


async def _approve(step: Step, approver: Client, turn: Turn) -> None:
    step.say("An approver, on a connection of its own, looks at exactly what would run, and approves that.")
    approval = await approver.approvals.get(turn.pending[0].approval_id)
    step.check("it would run", approval.tool, expected="send_message")
    step.check("with the arguments", approval.arguments_json, expected=ARGUMENTS)
    decided = await approver.approvals.approve(approval, reason="Ada is hungry")
    step.check("decided", ApprovalState.Name(decided.state), expected="APPROVAL_STATE_APPROVED")
    again = await approver.approvals.approve(approval, reason="Ada is hungry")
    step.check("the same decision again changes nothing", again, expected=decided, told="same answer")


async def _once(step: Step, parts: Parts, session: Session) -> None:
    heard = await log_of(session)
    about = [kind for kind in heard.kinds if kind.startswith(("tool_", "approval_"))]
    order = ["tool_called", "approval_requested", "approval_decided", "tool_started", "tool_returned"]
    step.check("the log's order", about, expected=order)
    lines = parts.outbox("Ada")
    step.check("messages sent in all (lines in the tool's file)", len(lines), expected=1)
    step.check("it says", lines[0]["text"], expected="lunch is at noon")


async def log_of(session: Session) -> Heard:
    """Every durable event so far."""
    heard = Heard()
    async for event in session.events():
        heard.add(event)
    return heard
