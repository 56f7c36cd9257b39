"""What a principal owns, for each kind of id, and a request of every RPC that names it; built from the descriptors."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from tests import harness
from tests.calls import bearer
from tests.identities import stubs_as, token_of
from tests.status_details import refused
from turnkeeper.domain.session import SessionKey
from turnkeeper.pb.v1 import agent_pb2, approval_pb2, chat_pb2, event_pb2, session_pb2
from turnkeeper.rpc import cursor
from turnkeeper.rpc.server import OUR_FILES

METHODS: Final[Mapping[str, MethodDescriptor]] = {
    method.name: method
    for file in OUR_FILES
    for service in file.services_by_name.values()
    for method in service.methods
}
IDS: Final = frozenset(
    ("session_id", "turn_id", "approval_id", "checkpoint_id", "tool_call_id", "after", "page_token", "new_session_id")
)
"""The fields of requests that name something of a tenant: ids, cursors and page tokens."""
LENT_TO: Final = "deputy"
"""The approver that gets authority lent where the principals file has it."""
ONE_PAGE: Final = ("ListActiveTurns", "ListApprovalDelegations")
"""The lists of which a principal here has one page at most."""
ENDLESS: Final = "WatchApprovals"
"""The method whose stream has no end of its own."""
CREATING: Final = frozenset({("CreateSession", "session_id"), ("ForkSession", "new_session_id")})
"""The fields that name what the call creates. The sweep leaves them out: the id of a session may be taken."""
OTHERS: Final = frozenset(
    (
        *(
            "request_id",
            "agent",
            "title",
            "owner",
            "order_by",
            "types",
            "etag",
            "reason",
            "text",
        ),
        *("agent_version", "active_turn_id", "created_through", "response_schema_json", "name", "description"),
        *("schema_json", "result_json", "tool", "arguments_hash", "model", "tools"),
        *("edited_arguments_json", "version", "instructions", "key", "value"),
        *(
            "data_json",
            "decidable_by",
            "requester",
            "if_version",
            "media_type",
            "on_behalf_of",
            "url",
            "principal",
            "person",
            "groups",
            "principals",
            "note",
            "arguments_json",
            "pattern",
            "when",
        ),
        "tenant",  # of operators and auditors: only the role platform may name another
    )
)
"""The texts in requests that name nothing of a tenant."""
SCRIPT: Final = """
[[reply]]
match = "^ask"
tool_calls = [{ name = "act", arguments = { label = "one" } }, { name = "act", arguments = { label = "two" } }]

[[reply]]
match = "^look"
tool_calls = [{ name = "look", arguments = {} }]

[[reply]]
match = "^fail"
text = "Never sent."
fail = "server_error"

[[reply]]
text = "Hello."
"""
LOOK: Final = chat_pb2.ClientTool(name="look", schema_json='{"type":"object"}')


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended: its status and every byte that came with it."""

    status: grpc.StatusCode
    message: str
    content: bytes
    """The responses, or the error's trailing metadata."""

    def renamed(self, absent: str, name: str) -> "Outcome":
        """Returns the outcome as it is if the call had named `name` instead of `absent`; both have the same length."""
        return Outcome(
            self.status, self.message.replace(absent, name), self.content.replace(absent.encode(), name.encode())
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A principal, and its channel."""

    name: str
    """TENANT/PRINCIPAL, the subject of its tokens."""
    channel: aio.Channel

    async def call(self, method: str, request: Message) -> Outcome:
        """Makes a call with raw bytes. A stream is read to its end."""
        descriptor = METHODS[method]
        path = f"/{descriptor.containing_service.full_name}/{method}"
        data, metadata = request.SerializeToString(), bearer(token_of(self.name))
        try:
            async with asyncio.timeout(20):
                if descriptor.server_streaming:
                    stream: Any = self.channel.unary_stream(path)(data, metadata=metadata)  # type: ignore[arg-type]
                    return Outcome(grpc.StatusCode.OK, "", await _read(method, stream))
                unary: Any = self.channel.unary_unary(path)(data, metadata=metadata)  # type: ignore[arg-type]
                return Outcome(grpc.StatusCode.OK, "", await unary)
        except aio.AioRpcError as error:
            trailers = sorted((key, value) for key, value in error.trailing_metadata() or ())
            return Outcome(error.code(), error.details() or "", repr(trailers).encode("unicode_escape"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Belongings:
    """What one principal owns: an id of each kind."""

    owner: Owner
    ids: Mapping[str, str]
    """By field, and for some methods by METHOD.FIELD."""
    arguments_hash: str

    @property
    def names(self) -> frozenset[str]:
        """Returns the ids that no other has. The id of a checkpoint is a place in any log."""
        return frozenset(id_ for field, id_ in self.ids.items() if not field.endswith("checkpoint_id"))

    def is_in(self, outcome: Outcome, *, but: str = "") -> bool:
        """Returns True if the outcome has any of the names, other than `but`."""
        return any(name.encode() in outcome.content for name in self.names - {but})

    def id_of(self, method: str, field: str) -> str:
        """Returns the id that a field of the method's request names."""
        return self.ids.get(f"{method}.{field}") or self.ids[field]

    async def request(self, method: str) -> Any:
        """Returns a request that names what the principal owns in each field of IDS, and that succeeds."""
        message = EXTRA.get(method, GetMessageClass(METHODS[method].input_type))()
        for parent, field in id_fields(message):
            if field.name != "page_token" and (method, field.name) not in CREATING:
                setattr(parent, field.name, self.id_of(method, field.name))
        for decision in {"DecideApproval": [message]}.get(method, getattr(message, "decisions", ())):
            decision.arguments_hash = self.arguments_hash
        if "page_token" in message.DESCRIPTOR.fields_by_name:
            message.page_size = 1
            outcome = await self.owner.call(method, message)
            if outcome.status is grpc.StatusCode.OK:
                response = GetMessageClass(METHODS[method].output_type).FromString(outcome.content)
                message.page_token = response.next_page_token  # type: ignore[attr-defined]
                assert message.page_token or method in ONE_PAGE, f"{method} has one page"
        return message


async def _read(method: str, stream: Any) -> bytes:
    """Returns the responses of a stream, until its snapshot is complete if it has no end."""
    parts: list[bytes] = []
    async for part in stream:
        parts.append(part)
        if method == ENDLESS and approval_pb2.WatchApprovalsResponse.FromString(part).caught_up:
            stream.cancel()
            break
    return b"".join(parts)


def id_fields(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """Yields the fields of IDS in a request, each with the message that has it: the request or the session in it."""
    for field in message.DESCRIPTOR.fields:
        if field.name in IDS:
            yield message, field
        elif field.name == "session":
            yield from id_fields(getattr(message, field.name))
        elif field.name == "decisions":
            for decision in getattr(message, field.name):
                yield from id_fields(decision)


def ids_in(message: Message) -> list[tuple[str, str]]:
    """Returns the fields of IDS that are set in a request, each with its id."""
    return [(field.name, id_) for parent, field in id_fields(message) if (id_ := getattr(parent, field.name))]


def absent_cursor(text: str, *, session_id: str, tenant: str) -> str:
    """Returns the cursor of the same place in a session that does not exist: anybody may make it up."""
    place = cursor.decode(text, key=SessionKey(tenant, session_id))
    return cursor.encode(place, key=SessionKey(tenant, absent(session_id)))


def naming(message: Any, names: Mapping[str, str]) -> Any:
    """Returns a copy of a request with these ids in place of its own, by field."""
    copy = type(message)()
    copy.CopyFrom(message)
    for parent, field in id_fields(copy):
        if getattr(parent, field.name) and field.name in names:
            setattr(parent, field.name, names[field.name])
    return copy


def text_fields(message: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yields the name of each text in a request, inside its messages, too."""
    for field in message.fields:
        if field.message_type is not None:
            if field.message_type.name not in path and not field.message_type.full_name.startswith("google."):
                yield from text_fields(field.message_type, (*path, field.message_type.name))
        elif field.type == FieldDescriptor.TYPE_STRING:
            yield field.name


def absent(name: str) -> str:
    """Returns an id, cursor or page token of the same length that nothing has."""
    head, hyphen, number = name.rpartition("-")
    if hyphen and number.isdigit():
        return f"{head}-{'9' * len(number)}"
    return "".join("1" if character == "0" else "0" for character in name)


def _update() -> Message:
    request = session_pb2.UpdateSessionRequest(session=session_pb2.Session(title="changed"))
    request.update_mask.paths.append("title")
    return request


def _lend() -> Message:
    request = approval_pb2.DelegateApprovalsRequest(principal=LENT_TO)
    request.until.FromDatetime(datetime.now(UTC) + timedelta(days=1))
    return request


EXTRA: Final[Mapping[str, Callable[[], Any]]] = {
    "CreateSession": lambda: session_pb2.CreateSessionRequest(request_id="r", agent="talker"),
    "UpdateSession": _update,
    "ForkSession": lambda: session_pb2.ForkSessionRequest(request_id="r"),
    "RestoreCheckpoint": lambda: session_pb2.RestoreCheckpointRequest(request_id="r"),
    "SendMessage": lambda: chat_pb2.SendMessageRequest(request_id="r", content=harness.text_parts("hello")),
    "StreamMessage": lambda: chat_pb2.StreamMessageRequest(request_id="r", content=harness.text_parts("hello")),
    "RetryTurn": lambda: chat_pb2.RetryTurnRequest(request_id="r"),
    "SubmitToolResult": lambda: chat_pb2.SubmitToolResultRequest(result_json='"seen"'),
    "WaitApproval": lambda: approval_pb2.WaitApprovalRequest(wait={"nanos": 1}),  # type: ignore[arg-type]
    "DecideApproval": lambda: approval_pb2.DecideApprovalRequest(decision=event_pb2.APPROVAL_DECISION_REJECT),
    "BatchDecideApprovals": lambda: approval_pb2.BatchDecideApprovalsRequest(
        decisions=[approval_pb2.DecideApprovalRequest(decision=event_pb2.APPROVAL_DECISION_REJECT)]
    ),
    "DelegateApprovals": _lend,
    "RevokeApprovalDelegation": lambda: approval_pb2.RevokeApprovalDelegationRequest(principal=LENT_TO),
    "ExtendApproval": lambda: approval_pb2.ExtendApprovalRequest(ttl=timedelta(hours=1)),  # type: ignore[arg-type]
    "GetAgent": lambda: agent_pb2.GetAgentRequest(name="talker"),
    "EvaluatePolicy": lambda: agent_pb2.EvaluatePolicyRequest(
        agent="asker", tool="add", arguments_json='{"a":1,"b":2}'
    ),
}
"""What a request needs beside ids."""


async def build(owner: Owner, *, turns: int = 2) -> Belongings:
    """Makes what a principal owns: some turns, a failed one, pending approvals, a call of a client's tool."""
    stubs = stubs_as(owner.channel, owner.name)

    async def conversation() -> dict[str, str]:
        session = await harness.create_test_session(stubs, agent="talker")
        sent = [await harness.send_message_to_session(stubs, session, "hello") for _ in range(turns)]
        page = await stubs.sessions.ListEvents(session_pb2.ListEventsRequest(session_id=session, page_size=100))
        checkpoints = await stubs.sessions.ListCheckpoints(session_pb2.ListCheckpointsRequest(session_id=session))
        return {
            "session_id": session,
            "turn_id": sent[-1].turn_id,
            "after": page.cursor,
            "checkpoint_id": checkpoints.checkpoints[-1].checkpoint_id,
        }

    async def failed() -> dict[str, str]:
        session = await harness.create_test_session(stubs, agent="hasty")
        with refused("LLM_API_ERROR"):
            await harness.send_message_to_session(stubs, session, "fail")
        listed = await stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session))
        return {"RetryTurn.session_id": session, "RetryTurn.turn_id": listed.turns[0].turn_id}

    async def asking() -> tuple[dict[str, str], str]:
        session = await harness.create_test_session(stubs, agent="asker")
        await harness.send_message_to_session(stubs, session, "ask")
        listed = await stubs.approvals.ListApprovals(approval_pb2.ListApprovalsRequest(session_id=session))
        approval = listed.approvals[0]
        return {
            "approval_id": approval.approval_id,
            **dict.fromkeys((f"{name}Approvals.session_id" for name in ("Count", "List", "Watch")), session),
        }, approval.arguments_hash

    async def client() -> dict[str, str]:
        session = await harness.create_test_session(stubs, agent="talker")
        turn = await harness.send_message_to_session(stubs, session, "look", client_tools=[LOOK])
        return {"SubmitToolResult.session_id": session, "tool_call_id": turn.pending[0].tool_call_id}

    of_conversation, of_failed, (of_asking, arguments_hash), of_client = await asyncio.gather(
        conversation(), failed(), asking(), client()
    )
    ids = {**of_conversation, **of_failed, **of_asking, **of_client}
    return Belongings(owner=owner, ids=ids, arguments_hash=arguments_hash)
