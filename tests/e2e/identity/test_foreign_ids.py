"""Every RPC with every kind of id of another tenant or owner: the answer is that for an absent id (I13)."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc import aio

from tests import harness
from tests.e2e.support.environment import AGENTS
from tests.e2e.support.foreign import (
    CREATING,
    IDS,
    METHODS,
    OTHERS,
    SCRIPT,
    Belongings,
    Owner,
    absent,
    absent_cursor,
    build,
    ids_in,
    naming,
    text_fields,
)
from tests.identities import row, settings_of, stubs_as
from tests.status_details import refused
from tests.test_tools import ToolControl
from turnkeeper.errors import SessionAlreadyExists
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANNA = "acme/anna"
FOREIGN = {
    "globex/gina": ["caller", "approver", "operator", "auditor", "platform"],
    "acme/bob": ["caller"],
    "acme/ivan": ["caller", "approver"],
}
"""Callers of another tenant, and other owners of the same one, with their roles."""
APPROVERS_SEE = (
    frozenset(f"{name}Approval" for name in ("Get", "Wait", "Decide", "Extend"))
    | frozenset(f"{name}Approvals" for name in ("Count", "List", "Watch"))
    | {"ListRememberedDecisions", "RevokeRememberedDecision", "BatchDecideApprovals"}
)
"""The methods by which an approver of the same tenant sees what it may decide."""
LISTS = frozenset({"ListAgents", "ListSessions", "ListApprovals", "CountApprovals", "WatchApprovals"})
"""The methods that return less where others refuse."""
REFUSES_EACH = "BatchDecideApprovals"
"""Refuses inside its response, beside the requested id."""


@dataclass(frozen=True, slots=True)
class Served:
    """The server, and what each foreign caller owns there."""

    address: str
    belongings: dict[str, Belongings]

    @contextlib.asynccontextmanager
    async def owner(self, name: str) -> AsyncIterator[Owner]:
        async with aio.insecure_channel(self.address) as channel:
            yield Owner(name=name, channel=channel)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    mongo_uri: str, module_database: str, tmp_path_factory: pytest.TempPathFactory, tool_control: ToolControl
) -> AsyncIterator[Served]:
    principals = {ANNA: ["caller", "approver"], **FOREIGN}
    rows = [row(name.split("/")[1], tenant=name.split("/")[0], roles=roles) for name, roles in principals.items()]
    settings = settings_of(tmp_path_factory.mktemp("identity"), *rows)
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, module_database, model, agents=AGENTS, **settings) as running,
        contextlib.AsyncExitStack() as stack,
    ):
        result = Served(running.address, {})
        for name in FOREIGN:
            result.belongings[name] = await build(await stack.enter_async_context(result.owner(name)))
        yield result


async def test_every_text_of_a_request_is_known() -> None:
    """A new field that names something of a tenant belongs to IDS, so that the sweep below has it."""
    texts = {name for method in METHODS.values() for name in text_fields(method.input_type)}
    assert not texts - IDS - OTHERS, sorted(texts - IDS - OTHERS)
    assert not (IDS | OTHERS) - texts


@pytest.mark.parametrize("method", METHODS)
async def test_a_foreign_id_is_an_absent_id(served: Served, method: str) -> None:
    async with served.owner(ANNA) as anna:
        owned = await build(anna, turns=4)
        request = await owned.request(method)
        for name, mine in served.belongings.items():
            if ids_in(request) and not (name == "acme/ivan" and method in APPROVERS_SEE):
                await whole_request_is_refused(method, request, owned=owned, by=mine.owner)
                await each_id_is_refused(method, request, owned=owned, by=mine)
        succeeded = await anna.call(method, request)
        if ids_in(request) and succeeded.status is not grpc.StatusCode.UNIMPLEMENTED:
            assert succeeded.status is grpc.StatusCode.OK, succeeded
            unswept = set(text_fields(METHODS[method].input_type)) & IDS - {field for field, _ in ids_in(request)}
            assert unswept <= {field for creating, field in CREATING if creating == method}


async def whole_request_is_refused(method: str, request: Any, *, owned: Belongings, by: Owner) -> None:
    """Asserts that the owner's own request gets what a request with absent ids gets."""
    names = dict(ids_in(request))
    missing = {field: absent(id_) for field, id_ in names.items()}
    if "after" in names:
        missing["after"] = absent_cursor(names["after"], session_id=names["session_id"], tenant="acme")
    answer = await by.call(method, request)
    expected = await by.call(method, naming(request, missing))
    for id_ in names.values():
        expected = expected.renamed(absent(id_), id_)
    assert answer == expected
    assert answer.status is not grpc.StatusCode.OK or method in (*LISTS, REFUSES_EACH), answer
    own = names["approval_id"] if method == REFUSES_EACH else ""
    assert not owned.is_in(answer, but=own) or answer.status is not grpc.StatusCode.OK


async def each_id_is_refused(method: str, request: Any, *, owned: Belongings, by: Belongings) -> None:
    """Asserts that each of the owner's ids gets what an absent one gets, beside ids that the caller owns."""
    for field, id_ in ids_in(request):
        mixed = await by.request(method)
        answer = await by.owner.call(method, naming(mixed, {field: id_}))
        expected = await by.owner.call(method, naming(mixed, {field: absent(id_)}))
        assert answer == expected.renamed(absent(id_), id_), field
        assert not owned.is_in(answer, but=id_)
        assert answer.status is not grpc.StatusCode.OK or method in (*LISTS, REFUSES_EACH)


async def test_a_list_has_only_what_the_caller_may_see(served: Served) -> None:
    async with served.owner(ANNA) as anna:
        owned = await build(anna)
    for name, mine in served.belongings.items():
        sessions = await mine.owner.call("ListSessions", session_pb2.ListSessionsRequest(page_size=100))
        approvals = await mine.owner.call("ListApprovals", approval_pb2.ListApprovalsRequest(page_size=100))
        assert mine.ids["session_id"].encode() in sessions.content
        assert mine.ids["approval_id"].encode() in approvals.content
        assert not owned.is_in(sessions)
        newest = approval_pb2.ListApprovalsRequest(page_size=100, order_by="create_time desc")
        assert owned.is_in(await mine.owner.call("ListApprovals", newest)) is (name == "acme/ivan")
        of_anna = await mine.owner.call("ListSessions", session_pb2.ListSessionsRequest(owner="anna"))
        assert of_anna.content == b""


async def test_two_tenants_have_sessions_of_the_same_id(served: Served) -> None:
    for tenant in (ANNA, "globex/gina"):
        async with served.owner(tenant) as owner:
            stubs = stubs_as(owner.channel, owner.name)
            await harness.create_test_session(stubs, agent="talker", session_id="the-same")
            await harness.send_message_to_session(stubs, "the-same", f"hello of {tenant}")
    for tenant in (ANNA, "globex/gina"):
        async with served.owner(tenant) as owner:
            listed = await owner.call("ListMessages", session_pb2.ListMessagesRequest(session_id="the-same"))
            assert listed.content.count(b"hello of") == 1
            assert f"hello of {tenant}".encode() in listed.content


async def test_an_id_that_another_owner_took_is_taken_and_tells_nothing_else(served: Served) -> None:
    async with served.owner(ANNA) as anna, served.owner("acme/bob") as bob:
        theirs, mine = stubs_as(anna.channel, anna.name), stubs_as(bob.channel, bob.name)
        session = await harness.create_test_session(theirs, agent="asker", session_id="taken-by-anna")
        for delete in (False, True):
            if delete:
                await theirs.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session_id=session))
            for create in (
                harness.create_test_session(mine, agent="talker", session_id=session),
                harness.send_message_to_session(
                    mine, session, "hello", create_session=chat_pb2.CreateSessionParams(agent="talker")
                ),
            ):
                with refused("SESSION_ALREADY_EXISTS") as refusal:
                    await create
                assert refusal.details.message == SessionAlreadyExists.__doc__
                assert refusal.details.metadata == {"session_id": session}
            with refused("SESSION_NOT_FOUND"):
                await mine.sessions.UndeleteSession(session_pb2.UndeleteSessionRequest(session_id=session))
