"""Shows a tool call that waits for an approval, the decision, and the result."""

from datetime import timedelta

from tests.demo.parts import Parts
from tests.demo.received import Received
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
        step.describe("The agent `clerk` has a tool that sends a message for good. Its policy: a person decides first.")
        step.begin_text("you")
        step.text(REQUEST)
        turn = await session.send(REQUEST)
        await _check_not_sent(step, session, sent=len(parts.outbox("Ada")))
        step.check("the turn waits", TurnState.Name(turn.state), expected="TURN_STATE_AWAITING_APPROVAL")
        await _approve(step, approver, turn)
        ended = await session.turn(turn.turn_id, wait=timedelta(seconds=20))
        step.check("the turn ended", TurnState.Name(ended.state), expected="TURN_STATE_COMPLETED")
        text = "".join(part.text for part in ended.answer)
        step.begin_text("clerk")
        step.text(text)
        step.check("the answer carries the tool's result", text, expected=RESULT)
        await _once(step, parts, session)


async def _check_not_sent(step: Step, session: Session, *, sent: int) -> None:
    received = await log_of(session)
    step.check("messages sent before the decision (lines in the tool's file)", sent, expected=0)
    step.check("`tool_started` in the event log", received.has("tool_started"), expected=False)


async def _approve(step: Step, approver: Client, turn: Turn) -> None:
    step.describe("An approver, on a connection of its own, gets the exact arguments and approves them.")
    approval = await approver.approvals.get(turn.pending[0].approval_id)
    step.check("the tool", approval.tool, expected="send_message")
    step.check("its arguments", approval.arguments_json, expected=ARGUMENTS)
    decided = await approver.approvals.approve(approval, reason="Ada is hungry")
    step.check("decided", ApprovalState.Name(decided.state), expected="APPROVAL_STATE_APPROVED")
    again = await approver.approvals.approve(approval, reason="Ada is hungry")
    step.check("the same decision again changes nothing", again, expected=decided, display="same answer")


async def _once(step: Step, parts: Parts, session: Session) -> None:
    received = await log_of(session)
    about = [kind for kind in received.kinds if kind.startswith(("tool_", "approval_"))]
    order = ["tool_called", "approval_requested", "approval_voted", "approval_decided", "tool_started", "tool_returned"]
    step.check("the log's order", about, expected=order)
    lines = parts.outbox("Ada")
    step.check("messages sent (lines in the tool's file)", len(lines), expected=1)
    step.check("its text", lines[0]["text"], expected="lunch is at noon")


async def log_of(session: Session) -> Received:
    """Returns every durable event of the session so far."""
    received = Received()
    async for event in session.events():
        received.add(event)
    return received
