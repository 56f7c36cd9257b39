"""The service by generic means: reflection, generic clients, which methods work, and the views of a turn."""

import asyncio
import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc import aio
from grpc_reflection.v1alpha import reflection_pb2
from pymongo import AsyncMongoClient

from tests import harness
from tests.e2e.support.environment import Environment
from tests.harness import Stubs
from tests.status_details import details_of
from tests.test_tools import REPOSITORY
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, message_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

BIN = Path(sys.executable).parent
STATUS = REPOSITORY / "docs" / "reference" / "status.md"
WORKS = {
    "SessionService": "CreateSession GetSession ListSessions UpdateSession SuspendSession ResumeSession EndSession "
    "DeleteSession UndeleteSession WatchEvents ListEvents ListMessages ListCheckpoints "
    "ForkSession RestoreCheckpoint ExportSession",
    "ChatService": "SendMessage StreamMessage GetTurn ListTurns CancelTurn RetryTurn SubmitToolResult",
    "ApprovalService": "GetApproval ListApprovals CountApprovals WatchApprovals WaitApproval DecideApproval "
    "ExtendApproval BatchDecideApprovals "
    "DelegateApprovals ListApprovalDelegations RevokeApprovalDelegation "
    "ListRememberedDecisions RevokeRememberedDecision",
    "AgentService": "GetAgent ListAgents EvaluatePolicy",
    "AuditService": "ExportAudit",
    "OperatorService": "ListActiveTurns CancelTurns FreezeAdmission UnfreezeAdmission ListFreezes DenyTool AllowTool "
    "ListDeniedTools ListReplicas",
}
REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
HEALTH_NAMES = ("", *(f"turnkeeper.v1.{name}" for name in WORKS), "liveness")
GENERIC_CALLS: list[tuple[str, Mapping[str, Any], str]] = [
    ("AgentService/ListAgents", {"page_size": 2}, "agents"),
    ("SessionService/CreateSession", {"session_id": "{session}", "agent": "talker"}, "session"),
    (
        "ChatService/SendMessage",
        {"session_id": "{session}", "request_id": "1", "content": [{"text": "hello"}]},
        "turn",
    ),
    ("ApprovalService/ListApprovals", {"session_id": "{session}"}, ""),
]
"""A method of each service, its request, a field of its response."""
SCRIPT = """
[[reply]]
match = "act"
text = "I will."
tool_calls = [{ name = "act", arguments = { label = "validated" } }]
usage = { input_tokens = 10, output_tokens = 3 }

[[reply]]
text = "You said: {user}"
usage = { input_tokens = 20, output_tokens = 4 }
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def methods(env: Environment) -> Mapping[str, MethodDescriptor]:
    """Returns every method of the services by reflection: `ChatService/GetTurn` → its descriptor."""
    pool: Any = DescriptorPool()
    methods: dict[str, MethodDescriptor] = {}
    for service in await _services(env.stubs):
        if service.startswith("turnkeeper."):
            await _learn(env.stubs, pool, reflection_pb2.ServerReflectionRequest(file_containing_symbol=service))
            described = pool.FindServiceByName(service)
            methods.update({f"{described.name}/{method.name}": method for method in described.methods})
    return methods


class TestReflection:
    async def test_it_lists_every_service(self, env: Environment) -> None:
        assert await _services(env.stubs) == {
            *(f"turnkeeper.v1.{name}" for name in WORKS),
            "grpc.health.v1.Health",
            *REFLECTION,
        }

    async def test_it_lists_and_describes_channelz_where_that_is_served(self, env: Environment) -> None:
        async with env.another(channelz=True) as stubs:
            assert "grpc.channelz.v1.Channelz" in await _services(stubs)
            pool: Any = DescriptorPool()
            await _learn(
                stubs, pool, reflection_pb2.ServerReflectionRequest(file_containing_symbol="grpc.channelz.v1.Channelz")
            )
            assert pool.FindServiceByName("grpc.channelz.v1.Channelz").methods_by_name["GetServers"]

    @pytest.mark.parametrize("version", REFLECTION)
    async def test_bytes_that_are_no_request_are_refused_and_not_logged(
        self, env: Environment, version: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        method: Any = env.stubs.channel.stream_stream(f"/{version}/ServerReflectionInfo")
        call = method(iter([b"", b"\x1a\x02\xc3\x28"]))
        assert await call.read()
        with pytest.raises(aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

    async def test_without_reflection_neither_version_answers(self, env: Environment) -> None:
        async with env.another(reflection=False) as stubs:
            for version in REFLECTION:
                with pytest.raises(aio.AioRpcError) as refused:
                    await _reflect(stubs, reflection_pb2.ServerReflectionRequest(list_services=""), version=version)
                assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED

    async def test_it_shows_the_rules_of_a_field(self, methods: Mapping[str, MethodDescriptor]) -> None:
        request = methods["ChatService/SendMessage"].input_type
        pool = request.file.pool
        options_class = GetMessageClass(pool.FindMessageTypeByName("google.protobuf.FieldOptions"))
        options: Any = options_class.FromString(request.fields_by_name["request_id"].GetOptions().SerializeToString())
        rules = options.Extensions[pool.FindExtensionByName("turnkeeper.v1.rules")]
        assert (rules.required, rules.max_length) == (True, 128)

    async def test_every_method_that_it_finds_works_or_is_unimplemented(
        self, env: Environment, methods: Mapping[str, MethodDescriptor]
    ) -> None:
        works = {f"{service}/{name}" for service, names in WORKS.items() for name in names.split()}
        assert works < methods.keys()
        answers = {name: await _call_empty(env.stubs.channel, method) for name, method in methods.items()}
        assert {name for name, later in answers.items() if not later} == works

    async def test_the_page_of_methods_has_the_same_statuses(self, methods: Mapping[str, MethodDescriptor]) -> None:
        rows = re.findall(r"^\| (\w+Service) \| (\w+) \| (works|later) \|$", STATUS.read_text(), re.MULTILINE)
        statuses = {f"{service}/{name}": status for service, name, status in rows}
        assert len(statuses) == len(rows)
        assert statuses == {
            name: "works" if name.partition("/")[2] in WORKS[name.partition("/")[0]].split() else "later"
            for name in methods
        }


class TestGenericClients:
    async def test_grpcurl_lists_describes_and_calls_each_service(self, env: Environment) -> None:
        listed = await _run("grpcurl", "-plaintext", env.address, "list")
        assert {f"turnkeeper.v1.{name}" for name in WORKS} <= set(listed.split())
        described = await _run("grpcurl", "-plaintext", env.address, "describe", "turnkeeper.v1.SendMessageRequest")
        assert "turnkeeper.v1.IfBusy if_busy = 4" in described
        method = await _run("grpcurl", "-plaintext", env.address, "describe", "turnkeeper.v1.ChatService.SendMessage")
        assert "rpc SendMessage ( .turnkeeper.v1.SendMessageRequest )" in method
        for method, request, field in GENERIC_CALLS:
            output = await _run(
                *("grpcurl", "-plaintext", "-d", _body(request, "grpcurl"), env.address, f"turnkeeper.v1.{method}")
            )
            assert field in json.loads(output or "{}") or not field

    async def test_buf_curl_calls_each_service(self, env: Environment, tmp_path: Path) -> None:
        for method, request, field in GENERIC_CALLS:
            output = await _run(
                *("buf", "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", _body(request, "buf")),
                f"http://{env.address}/turnkeeper.v1.{method}",
                cache=tmp_path,
            )
            assert field in json.loads(output or "{}") or not field

    async def test_grpcurl_describes_and_calls_health(self, env: Environment) -> None:
        described = await _run("grpcurl", "-plaintext", env.address, "describe", "grpc.health.v1.Health")
        for method in ("rpc Check (", "rpc List (", "rpc Watch ("):
            assert method in described
        health = ("grpcurl", "-plaintext", "-d")
        checked = await _run(*health, '{"service": "liveness"}', env.address, "grpc.health.v1.Health/Check")
        assert json.loads(checked) == {"status": "SERVING"}
        listed = await _run(*health, "{}", env.address, "grpc.health.v1.Health/List")
        assert json.loads(listed) == {"statuses": {name: {"status": "SERVING"} for name in HEALTH_NAMES}}

    @pytest.mark.parametrize("version", ["grpc-v1", "grpc-v1alpha"])
    async def test_buf_curl_reflects_by_either_version(self, env: Environment, tmp_path: Path, version: str) -> None:
        curl = ("buf", "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--reflect-protocol", version)
        url = f"http://{env.address}"
        services = await _run(*curl, "--list-services", url, cache=tmp_path)
        assert set(services.split()) == {
            *(name for name in HEALTH_NAMES if "." in name),
            "grpc.health.v1.Health",
            *REFLECTION,
        }
        methods = await _run(*curl, "--list-methods", url, cache=tmp_path)
        assert {f"grpc.health.v1.Health/{name}" for name in ("Check", "List", "Watch")} <= set(methods.split())
        assert {f"{name}/ServerReflectionInfo" for name in REFLECTION} <= set(methods.split())
        checked = await _run(
            *curl, "-d", '{"service": "liveness"}', f"{url}/grpc.health.v1.Health/Check", cache=tmp_path
        )
        assert json.loads(checked) == {"status": "SERVING"}
        listed = await _run(*curl, f"{url}/grpc.health.v1.Health/List", cache=tmp_path)
        assert json.loads(listed) == {"statuses": {name: {"status": "SERVING"} for name in HEALTH_NAMES}}

    @pytest.mark.parametrize("version", REFLECTION)
    async def test_either_version_finds_the_file_of_a_method(
        self, env: Environment, methods: Mapping[str, MethodDescriptor], version: str
    ) -> None:
        for method in methods.values():
            request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=method.full_name)
            (answer,) = await _reflect(env.stubs, request, version=version)
            (file, *_) = answer.file_descriptor_response.file_descriptor_proto
            assert method.containing_service.name in {
                service.name for service in FileDescriptorProto.FromString(file).service
            }
        for missing in ("turnkeeper.v1.ChatService.Nothing", "turnkeeper.v1.Nothing.SendMessage", "Nothing"):
            request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=missing)
            (answer,) = await _reflect(env.stubs, request, version=version)
            assert answer.error_response.error_code == 5

    @pytest.mark.parametrize("version", REFLECTION)
    async def test_either_version_finds_the_extension_that_holds_a_fields_rules(
        self, env: Environment, version: str
    ) -> None:
        request = reflection_pb2.ServerReflectionRequest(all_extension_numbers_of_type="google.protobuf.FieldOptions")
        (known,) = await _reflect(env.stubs, request, version=version)
        extensions = []
        for number in known.all_extension_numbers_response.extension_number:
            request = reflection_pb2.ServerReflectionRequest()
            request.file_containing_extension.containing_type = "google.protobuf.FieldOptions"
            request.file_containing_extension.extension_number = number
            (answer,) = await _reflect(env.stubs, request, version=version)
            files = [
                FileDescriptorProto.FromString(file) for file in answer.file_descriptor_response.file_descriptor_proto
            ]
            extensions += [extension.name for file in files for extension in file.extension]
        assert "rules" in extensions

    async def test_an_error_is_readable_without_our_stubs(self, env: Environment) -> None:
        request = '{"session_id": "missing"}'
        output = await _run(
            *("grpcurl", "-plaintext", "-d", request, env.address, "turnkeeper.v1.SessionService/GetSession"),
            status=69,
        )
        assert "Code: NotFound" in output
        assert "No such session; check session_id, or create the session first." in output
        assert '"reason":"SESSION_NOT_FOUND"' in output


class TestIntegrationValidation:
    async def test_one_turn_looks_the_same_from_everywhere(self, env: Environment) -> None:
        stubs, session = env.stubs, await harness.create_test_session(env.stubs, agent="asker")
        await harness.send_message_to_session(stubs, session, "act")
        approval = await harness.wait_for_approval(stubs, session)
        await harness.decide(stubs, approval)
        listed = await stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session))
        turn = await harness.wait_for_turn(stubs, session, listed.turns[0].turn_id)
        events = await harness.all_events(stubs, session)
        messages = (await stubs.sessions.ListMessages(session_pb2.ListMessagesRequest(session_id=session))).messages
        got = (await stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))).session
        decided = await stubs.approvals.GetApproval(approval_pb2.GetApprovalRequest(approval_id=approval.approval_id))
        used = message_pb2.Usage(input_tokens=30, output_tokens=7, model_calls=2, tool_calls=1)
        assert turn.usage == events[-1].turn_completed.usage == got.usage == used
        assert harness.answer_of(turn) == "You said: act" == messages[-1].content[0].text
        assert [event.sequence for event in events] == list(range(1, got.last_sequence + 1))
        assert [message.sequence for message in messages] == [
            event.sequence
            for event in events
            if event.WhichOneof("payload") in ("message_received", "message_completed", "tool_returned")
        ]
        assert (got.active_turn_id, got.queued_turns, got.title) == ("", 0, "act")
        assert decided.approval.state == approval_pb2.APPROVAL_STATE_APPROVED
        assert decided.approval.arguments_hash == _only(events, "tool_called").tool_called.arguments_hash
        assert [effect.key for effect in env.tool_control.effects("validated")] == [
            _only(events, "tool_started").tool_started.key
        ]

    async def test_a_turn_that_waits_for_a_person_holds_nothing(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="asker")
        turn = await harness.send_message_to_session(env.stubs, session, "act")
        assert turn.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL
        async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
            head = await client[env.database]["heads"].find_one({"tenant": harness.TENANT, "session_id": session})
        assert head is not None
        assert (head["owner"], head["lease_until"], head["wake_at"]) == ("", None, None)
        assert head["active_turn"] == turn.turn_id
        running = [task for task in asyncio.all_tasks() if "_run_turn" in str(task.get_coro())]
        assert not running, "nothing of any turn runs in this server"
        await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))

    async def test_from_nothing_to_an_answer_in_one_call(self, env: Environment) -> None:
        request = chat_pb2.SendMessageRequest(
            request_id=harness.new_request_id(),
            content=harness.text_parts("hello"),
            create_session=chat_pb2.CreateSessionParams(agent="talker", title="Quick", labels={"team": "blue"}),
        )
        first, again = [await env.stubs.chat.SendMessage(request) for _ in range(2)]
        assert first == again
        assert harness.answer_of(first.turn) == "You said: hello"
        got = await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=first.turn.session_id))
        assert (got.session.title, dict(got.session.labels)) == ("Quick", {"team": "blue"})


async def _services(stubs: Stubs) -> set[str]:
    (response,) = await _reflect(stubs, reflection_pb2.ServerReflectionRequest(list_services=""))
    return {service.name for service in response.list_services_response.service}


async def _learn(stubs: Stubs, pool: Any, request: reflection_pb2.ServerReflectionRequest) -> None:
    """Adds the file that the server names to the pool, after the files that it imports."""
    for response in await _reflect(stubs, request):
        for data in response.file_descriptor_response.file_descriptor_proto:
            file = FileDescriptorProto.FromString(data)
            for name in file.dependency:
                await _learn(stubs, pool, reflection_pb2.ServerReflectionRequest(file_by_filename=name))
            pool.Add(file)


async def _reflect(
    stubs: Stubs, request: reflection_pb2.ServerReflectionRequest, *, version: str = REFLECTION[0]
) -> list[Any]:
    """Returns the answers of one version of reflection; the messages of all versions are the same bytes.

    The request goes with the call: one that is written behind a refusal hides it.
    """
    channel: Any = stubs.channel
    info = channel.unary_stream(
        f"/{version}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return [response async for response in info(request)]


async def _call_empty(channel: Any, method: MethodDescriptor) -> bool:
    """Calls the method with an empty request. Returns True if it is unimplemented."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if method.server_streaming:
            await channel.unary_stream(path)(b"").read()
        else:
            await channel.unary_unary(path)(b"")
    except aio.AioRpcError as error:
        details = details_of(error)
        if details.status is not grpc.StatusCode.UNIMPLEMENTED:
            assert details.reason == "INVALID_REQUEST", "an empty request is refused for what it lacks"
            return False
        assert details.reason == "NOT_IMPLEMENTED"
        assert f"{method.name} comes with a later release" in details.message
        return True
    return False


async def _run(program: str, *arguments: str, status: int = 0, cache: Path | None = None) -> str:
    """Runs a program with the token of the tests' caller. Returns its output."""
    token = f"authorization: Bearer {harness.token()}"
    process = await asyncio.create_subprocess_exec(
        str(BIN / program),
        *(("-H", token, *arguments) if program == "grpcurl" else (*arguments, "-H", token, "--reflect-header", token)),
        env={**os.environ, "BUF_CACHE_DIR": str(cache or "")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == status, out.decode()
    return out.decode()


def _body(request: Mapping[str, Any], client: str) -> str:
    return json.dumps(request).replace("{session}", f"validation-{client}")


def _only(events: list[Any], kind: str) -> Any:
    (match,) = (event for event in events if event.WhichOneof("payload") == kind)
    return match
