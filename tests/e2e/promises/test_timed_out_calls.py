"""Promise I5: a tool that must not run twice and did not finish in time is unknown. An approval asks for its outcome.

The tool runs on. Its late result is shown in the approval, and nothing is answered or started by itself.
"""

import asyncio
from datetime import timedelta

import pytest

from tests import harness
from tests.contracts.stores import until
from tests.e2e.support.environment import Environment
from tests.e2e.support.lost_servers import question, returned
from tests.status_details import refused
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

RETRY, DONE, GIVE_UP = (
    event_pb2.APPROVAL_DECISION_RETRY,
    event_pb2.APPROVAL_DECISION_MARK_DONE,
    event_pb2.APPROVAL_DECISION_GIVE_UP,
)
OK, UNKNOWN = event_pb2.TOOL_OUTCOME_OK, event_pb2.TOOL_OUTCOME_UNKNOWN
SETTINGS = {"drain_grace": timedelta(milliseconds=100)}
TOOLS = {"loop": "hold_irreversible", "thread": "hold_irreversible_in_thread"}
SCRIPT = (
    "\n".join(
        f"""
[[reply]]
match = '^{where} (?P<label>\\S+)'
after_tools = 0
tool_calls = [{{ name = "{name}", arguments = {{ label = "{{label}}" }} }}]

[[reply]]
match = '^{where} again-'
after_tools = 1
tool_calls = [{{ name = "{name}", arguments = {{ label = "once-more" }} }}]
"""
        for where, name in TOOLS.items()
    )
    + r"""
[[reply]]
match = '^beside (?P<label>\S+)'
after_tools = 0
tool_calls = [
    { name = "hold_irreversible", arguments = { label = "{label}-1" } },
    { name = "hold_irreversible", arguments = { label = "{label}-2" } },
    { name = "add", arguments = { a = 1, b = 2 } },
]

[[reply]]
text = "Told: {tool_result}"
"""
)


async def timed_out(env: Environment, message: str, label: str) -> tuple[chat_pb2.Turn, approval_pb2.Approval]:
    """Sends a message whose tool holds beyond its time. Returns the turn, and the approval of the call's outcome."""
    session = await harness.create_test_session(env.stubs, agent="impatient")
    turn = await harness.send_message_to_session(env.stubs, session, message, wait=0)
    await env.tool_control.started(label)
    return turn, await question(env, turn)


async def with_late_result(env: Environment, approval: approval_pb2.Approval) -> approval_pb2.Approval:
    """Returns the approval once the late result is shown in it."""

    async def is_shown() -> bool:
        return bool((await harness.get_approval(env.stubs, approval.approval_id)).late_result_json)

    await until(is_shown)
    return await harness.get_approval(env.stubs, approval.approval_id)


async def ended(env: Environment, turn: chat_pb2.Turn) -> chat_pb2.Turn:
    turn_at_end = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
    assert turn_at_end.state == chat_pb2.TURN_STATE_COMPLETED
    return turn_at_end


@pytest.mark.parametrize("where", TOOLS)
class TestD3:
    async def test_d3_its_late_result_is_shown_and_answers_nothing_until_a_person_takes_it(
        self, env: Environment, where: str
    ) -> None:
        label = f"late-{where}"
        turn, approval = await timed_out(env, f"{where} {label}", label)
        assert approval.kind == event_pb2.APPROVAL_KIND_OUTCOME
        assert not approval.late_result_json
        assert not await returned(env, turn), "the model gets nothing that it could take for a no"
        with refused("INVALID_REQUEST") as refusal:
            await harness.answer(env.stubs, approval, DONE)
        assert "result_json is required" in refusal.details.message
        before = harness.kinds(await harness.all_events(env.stubs, turn.session_id))
        assert before[-2:] == ["tool_started", "approval_requested"]
        env.tool_control.release(label)
        shown = await with_late_result(env, approval)
        assert shown.late_result_json == f'"{label} is done"'
        assert harness.kinds(await harness.all_events(env.stubs, turn.session_id)) == before
        with refused("ARGUMENTS_HASH_MISMATCH"):
            await harness.answer(env.stubs, approval, RETRY)
        decided = await harness.answer(env.stubs, shown, DONE)
        assert (await harness.answer(env.stubs, shown, DONE)).sequence == decided.sequence
        assert harness.answer_of(await ended(env, turn)) == f"Told: {label} is done"
        (result,) = await returned(env, turn)
        assert (result.outcome, result.started) == (OK, True)
        assert len(env.tool_control.effects(label)) == 1

    async def test_d3_the_model_starts_it_again_only_with_a_persons_leave(self, env: Environment, where: str) -> None:
        label = f"again-{where}"
        turn, approval = await timed_out(env, f"{where} {label}", label)
        await harness.answer(env.stubs, approval, GIVE_UP)
        waiting = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
        assert waiting.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL, (
            "the policy lets it through; the unknown does not"
        )
        second = await harness.wait_for_approval(env.stubs, turn.session_id)
        assert list(second.unknown_tool_call_ids) == [approval.tool_call_id]
        await harness.decide(env.stubs, second, approve=False)
        await ended(env, turn)
        assert [result.outcome for result in await returned(env, turn)][:1] == [UNKNOWN]
        assert len(env.tool_control.effects(label)) == 1
        assert not env.tool_control.effects("once-more")
        env.tool_control.release(label)

    async def test_d3_retry_starts_it_again_and_the_first_ones_result_is_not_the_seconds(
        self, env: Environment, where: str
    ) -> None:
        label = f"twice-{where}"
        turn, approval = await timed_out(env, f"{where} {label}", label)
        await harness.answer(env.stubs, approval, RETRY)
        first, second = await env.tool_control.started(label, times=2)
        assert first.key == second.key
        again = await question(env, turn)
        assert (again.round, again.late_result_json) == (approval.round + 1, "")
        env.tool_control.release(label)
        shown = await with_late_result(env, again)
        await harness.answer(env.stubs, shown, DONE)
        await ended(env, turn)
        assert len(await returned(env, turn)) == 1
        assert len(env.tool_control.effects(label)) == 2


async def test_d3_two_that_time_out_together_show_each_other_and_the_third_has_its_result(env: Environment) -> None:
    turn, _ = await beside(env, "pair")
    waiting = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
    first, second = [await harness.get_approval(env.stubs, item.approval_id) for item in waiting.pending]
    assert list(first.unknown_tool_call_ids) == [second.tool_call_id]
    assert list(second.unknown_tool_call_ids) == [first.tool_call_id]
    assert [result.outcome for result in await returned(env, turn)] == [OK]
    for number in (1, 2):
        env.tool_control.release(f"pair-{number}")
    for approval in (first, second):
        await harness.answer(env.stubs, await with_late_result(env, approval), DONE)
    await ended(env, turn)


async def beside(env: Environment, label: str) -> tuple[chat_pb2.Turn, str]:
    session = await harness.create_test_session(env.stubs, agent="impatient")
    turn = await harness.send_message_to_session(env.stubs, session, f"beside {label}", wait=20)
    assert turn.state == chat_pb2.TURN_STATE_AWAITING_OUTCOME
    return turn, session


async def test_d3_a_cancelled_turn_leaves_it_unknown(env: Environment) -> None:
    turn, approval = await timed_out(env, "loop cancelled", "cancelled")
    cancel = chat_pb2.CancelTurnRequest(session_id=turn.session_id, turn_id=turn.turn_id)
    assert (await env.stubs.chat.CancelTurn(cancel)).turn.state == chat_pb2.TURN_STATE_CANCELLED
    assert (await harness.get_approval(env.stubs, approval.approval_id)).state == approval_pb2.APPROVAL_STATE_WITHDRAWN
    (result,) = await returned(env, turn)
    assert (result.outcome, result.started) == (UNKNOWN, True)
    events = await harness.all_events(env.stubs, turn.session_id)
    env.tool_control.release("cancelled")
    await asyncio.sleep(0)
    assert await harness.all_events(env.stubs, turn.session_id) == events
