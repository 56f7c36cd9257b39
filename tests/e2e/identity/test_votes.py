"""Who may decide an approval, how many it takes, and what an edit, a delegation and a second vote do."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.voters import APPROVE, APPROVED, PENDING, Served, delegate, serving_voters
from tests.status_details import refused
from tests.test_tools import ToolControl
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    mongo_uri: str, module_database: str, tmp_path_factory: pytest.TempPathFactory, tool_control: ToolControl
) -> AsyncIterator[Served]:
    async with serving_voters(mongo_uri, module_database, tmp_path_factory.mktemp("votes")) as served:
        yield served
        await check(mongo_uri, module_database)


async def test_two_persons_decide_and_each_vote_is_an_event_and_a_record(
    served: Served, tool_control: ToolControl
) -> None:
    bob, eve, anna = await served.as_("bob"), await served.as_("eve", 1), await served.as_("anna")
    approval = await served.pending("two")
    assert (list(approval.approvers.groups), approval.approvers.k, approval.needed) == (["finance"], 2, 2)
    first = await harness.decide(bob, approval, reason="paid before")
    assert (first.approval.state, first.approval.needed) == (PENDING, 1)
    assert not tool_control.effects("two")
    assert await harness.decide(bob, approval, reason="again") == first, "the same vote again stores nothing"
    second = await harness.decide(eve, approval)
    assert (second.approval.state, second.approval.decided_by, second.approval.needed) == (APPROVED, "eve", 0)
    await harness.wait_for_turn(anna, "two", approval.turn_id)
    assert len(tool_control.effects("two")) == 1
    read = session_pb2.GetSessionRequest(session_id="two")
    assert (await bob.sessions.GetSession(read)).session.session_id == "two", "who has voted reads on"
    with refused("SESSION_NOT_FOUND"):
        await (await served.as_("vic")).sessions.GetSession(read)
    assert (await harness.decide(bob, approval)).sequence == first.sequence
    assert (await harness.decide(eve, approval)).sequence == second.sequence
    voted, voted_again, decided = await served.events("two", "approval_voted", "approval_decided")
    assert (voted.sequence, decided.sequence) == (first.sequence, second.sequence)
    assert all(event.ignorable for event in (voted, voted_again))
    assert not decided.ignorable
    vote = voted.approval_voted
    assert (vote.person, vote.authority, vote.reason, vote.decision) == ("bob", "bob", "paid before", APPROVE)
    records = await served.records(action="decide_approval", target=approval.approval_id)
    described = sorted((record["details"]["votes"], record["principal"], record["outcome"]) for record in records)
    assert described == [("1 of 2", "bob", "PENDING"), ("2 of 2", "eve", "APPROVED")]


async def test_who_may_not_decide_gets_what_is_needed(served: Served) -> None:
    for_anna = await served.as_("portal", turnkeeper_on_behalf_of="anna")
    approval = await served.pending("refused", sender=for_anna)
    assert approval.requester == "anna"
    for stubs, why in (
        (await served.as_("anna"), "requester"),
        (for_anna, "requester"),
        (await served.as_("portal"), "requester"),
        (await served.as_("vic"), "not_named"),
    ):
        with refused("PERMISSION_DENIED") as refusal:
            await harness.decide(stubs, approval, approve=False)
        assert {
            "why": why,
            "groups": "finance",
            "needed": "2",
            "missing": "2",
        }.items() <= refusal.details.metadata.items()
        assert "Needed: 2 of members of finance, not who caused the call." in refusal.details.message
    with refused("PERMISSION_DENIED"):
        await harness.decide(await served.as_("kim"), approval)
    assert not await served.events("refused", "approval_voted")
    assert not await served.records(action="decide_approval", target=approval.approval_id, outcome="PENDING")


async def test_a_vote_counts_no_more_once_its_voter_has_caused_the_call(
    served: Served, tool_control: ToolControl
) -> None:
    anna, bob, eve, portal = [await served.as_(name) for name in ("anna", "bob", "eve", "portal")]
    await harness.create_test_session(anna, agent="payer", session_id="looked")
    look = chat_pb2.ClientTool(name="look", schema_json='{"type":"object"}')
    turn = await harness.send_message_to_session(anna, "looked", "look-and-do looked", client_tools=[look])
    approval = await harness.wait_for_approval(anna, "looked")
    assert (await harness.decide(portal, approval)).approval.needed == 1
    (event,) = await served.events("looked", "client_tool_requested")
    result = chat_pb2.SubmitToolResultRequest(
        session_id="looked", tool_call_id=event.client_tool_requested.tool_call_id, result_json='"seen"'
    )
    await (await served.as_("portal", turnkeeper_on_behalf_of="anna")).chat.SubmitToolResult(result)
    voted = (await harness.decide(bob, approval)).approval
    assert (voted.state, voted.needed, [vote.person for vote in voted.votes]) == (PENDING, 1, ["bob"])
    assert not tool_control.effects("looked")
    assert (await harness.decide(eve, approval)).approval.state == APPROVED
    assert (await harness.wait_for_turn(anna, "looked", turn.turn_id)).state == chat_pb2.TURN_STATE_COMPLETED


async def test_a_delegate_votes_in_the_place_of_another_until_that_is_taken_back(served: Served) -> None:
    eve, sue, vic = await served.as_("eve"), await served.as_("sue", 1), await served.as_("vic")
    approval = await served.pending("delegated")
    with refused("PERMISSION_DENIED"):
        await harness.decide(sue, approval)
    await delegate(eve, "sue")
    for stubs, count in ((eve, 1), (sue, 1), (vic, 0), (await served.as_("olga"), 1)):
        listed = await stubs.approvals.ListApprovalDelegations(approval_pb2.ListApprovalDelegationsRequest())
        assert [(lent.person, lent.delegate) for lent in listed.delegations] == [("eve", "sue")] * count
    voted = (await harness.decide(sue, approval)).approval.votes[0]
    assert (voted.person, voted.authority) == ("sue", "eve")
    with refused("APPROVAL_ALREADY_PROCESSED") as refusal:
        await harness.decide(eve, approval)
    assert (refusal.details.metadata["voted_by"], refusal.details.metadata["authority"]) == ("sue", "eve")
    revoke = approval_pb2.RevokeApprovalDelegationRequest(principal="sue", person="eve")
    with refused("PERMISSION_DENIED"):
        await vic.approvals.RevokeApprovalDelegation(revoke)
    for revoked in (True, False):
        assert (await eve.approvals.RevokeApprovalDelegation(revoke)).revoked is revoked
    other = await served.pending("no-longer")
    with refused("PERMISSION_DENIED"):
        await harness.decide(sue, other)
    assert (await harness.decide(await served.as_("bob"), approval)).approval.state == APPROVED, "the vote stays"
    (record,) = await served.records(target=approval.approval_id, principal="sue")
    assert (record["details"]["decided_by"], record["details"]["authority"]) == ("sue", "eve")
    (lent,) = await served.records(action="delegate_approvals", target="sue")
    assert (lent["principal"], lent["details"]["person"]) == ("eve", "eve")
    assert len(await served.records(action="revoke_approval_delegation", target="sue")) == 1


async def test_the_requester_gains_and_lends_nothing_by_delegation(served: Served) -> None:
    anna, bob, vic = await served.as_("anna"), await served.as_("bob"), await served.as_("vic")
    await delegate(anna, "vic")
    await delegate(bob, "anna")
    approval = await served.pending("own")
    for stubs in (vic, anna):
        with refused("PERMISSION_DENIED"):
            await harness.decide(stubs, approval)
    for stubs, name in ((anna, "vic"), (bob, "anna")):
        request = approval_pb2.RevokeApprovalDelegationRequest(principal=name)
        assert (await stubs.approvals.RevokeApprovalDelegation(request)).revoked


@pytest.mark.parametrize(
    ("name", "days", "field_"),
    [
        ("sue", 31, "until"),
        ("sue", -1, "until"),
        ("kim", 1, "principal"),
        ("unknown", 1, "principal"),
        ("eve", 1, "principal"),
    ],
)
async def test_authority_goes_to_another_approver_for_thirty_days_at_most(
    served: Served, name: str, days: int, field_: str
) -> None:
    with refused("INVALID_REQUEST") as refusal:
        await delegate(await served.as_("eve"), name, days=days)
    assert field_ in refusal.details.fields


async def test_an_edit_voids_the_votes_before_and_is_the_first_of_its_round(
    served: Served, tool_control: ToolControl
) -> None:
    bob, eve, anna, vic = [await served.as_(name) for name in ("bob", "eve", "anna", "vic")]
    approval = await served.pending("edited")
    await harness.decide(bob, approval)
    changed = '{"label":"edited-2"}'
    for stubs in (vic, anna):
        with refused("PERMISSION_DENIED"):
            await harness.answer(stubs, approval, APPROVE, edited_arguments_json=changed)
    with refused("APPROVAL_ALREADY_PROCESSED") as refusal:
        await harness.answer(bob, approval, APPROVE, edited_arguments_json=changed)
    assert refusal.details.metadata["your_vote"] == "APPROVE"
    edited = await harness.answer(eve, approval, APPROVE, edited_arguments_json=changed)
    assert (edited.approval.round, edited.approval.state, edited.approval.needed) == (2, PENDING, 1)
    assert [vote.person for vote in edited.approval.votes] == ["eve"]
    assert await harness.answer(eve, approval, APPROVE, edited_arguments_json=changed) == edited
    assert (await harness.decide(bob, edited.approval)).approval.state == APPROVED
    await harness.wait_for_turn(anna, "edited", approval.turn_id)
    assert len(tool_control.effects("edited-2")) == 1
    assert not tool_control.effects("edited")


async def test_without_a_veto_an_approval_can_be_taken_back_and_two_rejections_end_it(served: Served) -> None:
    bob, eve, vic = [await served.as_(name) for name in ("bob", "eve", "vic")]
    approval = await served.pending("lenient", agent="lenient")
    await harness.decide(bob, approval)
    taken_back = (await harness.decide(bob, approval, approve=False)).approval
    assert (taken_back.state, taken_back.needed, len(taken_back.votes)) == (PENDING, 2, 1)
    with refused("APPROVAL_ALREADY_PROCESSED") as refusal:
        await harness.decide(bob, approval)
    assert refusal.details.metadata["your_vote"] == "REJECT"
    for_eve = await served.as_("portal", turnkeeper_on_behalf_of="eve")
    with refused("PERMISSION_DENIED") as refusal:
        await harness.decide(for_eve, approval)
    assert refusal.details.metadata["why"] == "delegate"
    assert (await harness.decide(eve, approval)).approval.state == PENDING
    assert (await harness.decide(vic, approval, approve=False)).approval.state == approval_pb2.APPROVAL_STATE_REJECTED


async def test_what_a_delegate_lends_on_behalf_of_a_person_is_not_the_persons_own_call(served: Served) -> None:
    for_eve, sue = await served.as_("portal", turnkeeper_on_behalf_of="eve"), await served.as_("sue")
    approval = await served.pending("lent-through", agent="direct")
    await delegate(for_eve, "sue")
    listed = await sue.approvals.ListApprovalDelegations(approval_pb2.ListApprovalDelegationsRequest())
    assert [(lent.person, lent.through) for lent in listed.delegations] == [("eve", "portal")]
    with refused("PERMISSION_DENIED") as refusal:
        await harness.decide(sue, approval)
    assert refusal.details.metadata["why"] == "delegate"
    await delegate(await served.as_("eve"), "sue")
    assert (await harness.decide(sue, approval)).approval.state == APPROVED
    request = approval_pb2.RevokeApprovalDelegationRequest(principal="sue")
    assert (await (await served.as_("eve")).approvals.RevokeApprovalDelegation(request)).revoked


@pytest.mark.parametrize(("seconds", "nanos"), [(2**62, 0), (-(2**62), 0), (253402300800, 0), (1, -1), (1, 2**31 - 1)])
async def test_an_end_that_is_not_a_time_is_refused_as_one(served: Served, seconds: int, nanos: int) -> None:
    request = approval_pb2.DelegateApprovalsRequest(principal="sue")
    request.until.seconds, request.until.nanos = seconds, nanos
    with refused("INVALID_REQUEST") as refusal:
        await (await served.as_("eve")).approvals.DelegateApprovals(request)
    assert list(refusal.details.fields) == ["until"]
