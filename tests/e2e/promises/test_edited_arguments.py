"""Promise I14 with an approver's own arguments: the next round, its own hash, its author's vote, and one start."""

import asyncio
import json

import pytest

from tests import harness
from tests.e2e.support.environment import Environment, transcript
from tests.e2e.support.lost_servers import returned
from tests.status_details import details_of, refused
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

APPROVE, REJECT = event_pb2.APPROVAL_DECISION_APPROVE, event_pb2.APPROVAL_DECISION_REJECT
SCRIPT = r"""
[[reply]]
match = '^do (?P<label>\S+)'
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
text = "Told: {tool_result}"
"""


async def pending_approval(env: Environment, label: str) -> tuple[chat_pb2.Turn, approval_pb2.Approval]:
    session = await harness.create_test_session(env.stubs, agent="asker")
    turn = await harness.send_message_to_session(env.stubs, session, f"do {label}")
    return turn, await harness.wait_for_approval(env.stubs, session)


def labelled(label: str) -> str:
    return json.dumps({"label": label}, indent=1)


class TestEdits:
    async def test_i14_the_edited_arguments_run_and_the_original_ones_do_not(self, env: Environment) -> None:
        turn, first = await pending_approval(env, "original")
        decided = await harness.answer(
            env.stubs, first, APPROVE, reason="Better so.", edited_arguments_json=labelled("edited")
        )
        second = decided.approval
        assert second.approval_id != first.approval_id
        assert (second.round, second.tool_call_id, second.state) == (
            2,
            first.tool_call_id,
            approval_pb2.APPROVAL_STATE_APPROVED,
        )
        assert second.arguments_json == '{"label":"edited"}'
        assert second.arguments_hash != first.arguments_hash
        assert second.reason == "Better so."
        old = await harness.get_approval(env.stubs, first.approval_id)
        assert (old.state, old.replaced_by) == (approval_pb2.APPROVAL_STATE_WITHDRAWN, second.approval_id)
        ended = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
        assert harness.answer_of(ended) == "Told: edited is done"
        assert (len(env.tool_control.effects("original")), len(env.tool_control.effects("edited"))) == (0, 1)
        events = await harness.all_events(env.stubs, turn.session_id)
        about = [event for event in events if str(event.WhichOneof("payload")).startswith("approval_")]
        assert harness.kinds(about) == [
            "approval_requested",
            "approval_withdrawn",
            "approval_requested",
            "approval_voted",
            "approval_decided",
        ]
        assert about[1].approval_withdrawn.replaced_by == second.approval_id
        assert about[4].approval_decided.arguments_hash == second.arguments_hash
        assert decided.sequence == about[4].sequence
        request_messages = env.model_requests("do original")[-1]
        (call,) = [call for message in request_messages for call in message.get("tool_calls", ())]
        assert json.loads(call["function"]["arguments"]) == {"label": "original"}, "the model sees its own arguments"
        assert "tool: edited is done" in transcript(request_messages)

    async def test_i8_a_repeat_is_answered_and_anybody_elses_decision_is_refused(self, env: Environment) -> None:
        _, first = await pending_approval(env, "repeated")
        edit = labelled("repeated-edit")
        decided = await harness.answer(env.stubs, first, APPROVE, edited_arguments_json=edit)
        again = await harness.answer(env.stubs, first, APPROVE, edited_arguments_json='{ "label" : "repeated-edit" }')
        assert (again.approval, again.sequence) == (decided.approval, decided.sequence)
        for wrong in (labelled("another"), "", "no JSON"):
            with refused("APPROVAL_ALREADY_PROCESSED") as refusal:
                await harness.answer(env.stubs, first, APPROVE, edited_arguments_json=wrong)
            assert refusal.details.metadata["replaced_by"] == decided.approval.approval_id
        with refused("APPROVAL_ALREADY_PROCESSED"):
            await harness.answer(env.stubs, first, REJECT)
        await harness.wait_for_turn(env.stubs, first.session_id, first.turn_id)
        assert len(env.tool_control.effects("repeated-edit")) == 1

    async def test_i6_editors_at_once_have_one_winner(self, env: Environment) -> None:
        async with env.another() as other:
            for number in range(4):
                turn, first = await pending_approval(env, f"race-{number}")
                labels = [f"race-{number}-{name}" for name in "abc"]
                outcomes = await asyncio.gather(
                    *(
                        harness.answer(stubs, first, APPROVE, edited_arguments_json=labelled(label))
                        for stubs, label in zip((env.stubs, other, env.stubs), labels, strict=True)
                    ),
                    harness.answer(other, first, REJECT),
                    return_exceptions=True,
                )
                lost = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
                assert [details_of(error).reason for error in lost] == ["APPROVAL_ALREADY_PROCESSED"] * 3  # type: ignore[arg-type]
                await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
                (result,) = await returned(env, turn)
                ran = sum(len(env.tool_control.effects(label)) for label in labels)
                assert ran == int(result.started)

    async def test_what_does_not_fit_is_refused_and_the_question_stands(self, env: Environment) -> None:
        turn, first = await pending_approval(env, "unfit")
        for wrong in ("{", '{"label": 3}', "[]", '{"label": "x", "more": 1}'):
            with refused("TOOL_VALIDATION_ERROR") as refusal:
                await harness.answer(env.stubs, first, APPROVE, edited_arguments_json=wrong)
            assert refusal.details.fields == ("edited_arguments_json",)
        with refused("INVALID_REQUEST"):
            await harness.answer(env.stubs, first, REJECT, edited_arguments_json=labelled("x"))
        with refused("ARGUMENTS_HASH_MISMATCH"):
            other = approval_pb2.Approval(approval_id=first.approval_id, arguments_hash="0" * 64)
            await harness.answer(env.stubs, other, APPROVE, edited_arguments_json=labelled("x"))
        assert await harness.get_approval(env.stubs, first.approval_id) == first
        await harness.decide(env.stubs, first, approve=False)
        await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)

    async def test_an_edit_with_the_same_arguments_is_a_plain_approval(self, env: Environment) -> None:
        turn, first = await pending_approval(env, "same")
        decided = await harness.answer(env.stubs, first, APPROVE, edited_arguments_json=labelled("same"))
        assert (decided.approval.approval_id, decided.approval.round) == (first.approval_id, 1)
        again = await harness.answer(env.stubs, first, APPROVE, edited_arguments_json=labelled("same"))
        assert again.sequence == decided.sequence
        with refused("APPROVAL_ALREADY_PROCESSED"):
            await harness.answer(env.stubs, first, APPROVE, edited_arguments_json=labelled("other"))
        await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
        assert len(env.tool_control.effects("same")) == 1
