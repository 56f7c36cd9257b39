"""Each thing worth counting is counted under exactly its labels, and no label can hold an id."""

import inspect
import re

import pytest
from opentelemetry.metrics import NoOpMeterProvider

from tests.unit.telemetry.calls import Meters, arguments, methods, points
from turnkeeper.codes import Code
from turnkeeper.domain.approval import ApprovalState
from turnkeeper.domain.message import Role
from turnkeeper.domain.tool import ToolClass, ToolOutcome
from turnkeeper.domain.turn import TurnState
from turnkeeper.telemetry.labels import OTHER, label
from turnkeeper.telemetry.metrics import Metrics

IDS = [
    "01hzx3v8k2m4n6p8q0r2s4t6v8",
    "7b0f9a5e-3b1c-4c7e-9d53-2f6f1f9d3c11",
    "0af7651916cd43dd8448eb211c80319c",
    "507f1f77bcf86cd799439011",
    "sess_01hzx3v8k2m4n6p8q0r2s4t6v8",
    "session-0af7651916cd43dd8448eb211c80319c",
    "1712345678901234567",
    "an argument: pay 100 to me",
    "bobby@example.com said\nso",
    "",
    "x" * 200,
]
NAMES = ["gpt-4o-2024-08-06", "org/model:tag", "SmolLM2-135M-Instruct.Q4_K_M", "weather", "STALE", "mcp+stdio"]
SERVER = ("models.example.com", 8080)


def test_a_message_a_tool_an_error_and_an_approval_are_counted() -> None:
    meters = Meters()
    meters.metrics.message(Role.USER)
    meters.metrics.message(Role.USER)
    meters.metrics.tool_finished("samples", tool_class=ToolClass.READ_ONLY, outcome=ToolOutcome.OK, seconds=0.25)
    meters.metrics.error(Code.LLM_TIMEOUT)
    meters.metrics.approval(ApprovalState.APPROVED)
    assert meters.points("turnkeeper.messages") == {(("role", "USER"),): 2}
    assert meters.points("turnkeeper.tool_calls") == {
        (("class", "READ_ONLY"), ("outcome", "OK"), ("source", "samples")): 1
    }
    assert meters.points("turnkeeper.tool.duration") == {(("source", "samples"),): 0.25}
    assert meters.points("turnkeeper.errors") == {(("code", "LLM_TIMEOUT"),): 1}
    assert meters.points("turnkeeper.approvals") == {(("decision", "APPROVED"),): 1}


def test_a_turn_is_measured_from_several_sides() -> None:
    meters = Meters()
    meters.metrics.turn_finished(TurnState.COMPLETED, agent="helper", seconds=4)
    meters.metrics.response_finished("helper", model="small", seconds=3)
    meters.metrics.tokens("input", agent="helper", count=100)
    meters.metrics.tokens("output", agent="helper", count=20)
    meters.metrics.takeover("LEASE_LAPSED", delay=31)
    meters.metrics.loop_lag(0.5)
    assert meters.points("turnkeeper.turn.duration") == {(("agent", "helper"), ("outcome", "COMPLETED")): 4}
    assert meters.points("turnkeeper.response.duration") == {(("agent", "helper"), ("model", "small")): 3}
    assert meters.points("turnkeeper.tokens") == {
        (("agent", "helper"), ("kind", "input")): 100,
        (("agent", "helper"), ("kind", "output")): 20,
    }
    assert meters.points("turnkeeper.takeovers") == {(("reason", "LEASE_LAPSED"),): 1}
    assert meters.points("turnkeeper.takeover.delay") == {(): 31}
    assert meters.points("turnkeeper.event_loop.lag") == {(): 0.5}


def test_only_a_servers_fault_has_an_error_type() -> None:
    meters = Meters()
    for code in ("OK", "NOT_FOUND", "UNAVAILABLE"):
        meters.metrics.rpc_finished("turnkeeper.v1.ChatService", method="SendMessage", code=code, seconds=1)
    common = ("rpc.method", "turnkeeper.v1.ChatService/SendMessage")
    system = ("rpc.system.name", "grpc")
    assert meters.points("rpc.server.call.duration") == {
        (common, ("rpc.response.status_code", "OK"), system): 1,
        (common, ("rpc.response.status_code", "NOT_FOUND"), system): 1,
        (("error.type", "UNAVAILABLE"), common, ("rpc.response.status_code", "UNAVAILABLE"), system): 1,
    }


def test_a_model_call_counts_its_tokens_where_they_are_known() -> None:
    meters = Meters()
    meters.metrics.model_finished("small", server=SERVER, seconds=2, input_tokens=100, output_tokens=7)
    meters.metrics.model_finished("small", server=SERVER, seconds=1, error_type="LLM_TIMEOUT")
    meters.metrics.first_chunk("small", server=SERVER, seconds=0.5)
    call = (("gen_ai.operation.name", "chat"), ("gen_ai.provider.name", "openai"), ("gen_ai.request.model", "small"))
    server = (("server.address", "models.example.com"), ("server.port", "8080"))
    model = (*call, *server)
    assert meters.points("gen_ai.client.operation.duration") == {
        model: 2,
        (("error.type", "LLM_TIMEOUT"), *model): 1,
    }
    assert meters.points("gen_ai.client.token.usage") == {
        (*call, ("gen_ai.token.type", "input"), *server): 100,
        (*call, ("gen_ai.token.type", "output"), *server): 7,
    }
    assert meters.points("gen_ai.client.operation.time_to_first_chunk") == {model: 0.5}


def test_a_tool_is_counted_by_its_name_where_the_operator_gave_it() -> None:
    meters = Meters()
    finished = meters.metrics.tool_finished
    finished("samples", tool="pay", tool_class=ToolClass.IRREVERSIBLE, outcome=ToolOutcome.OK, seconds=0.25)
    finished("samples", tool="pay", tool_class=ToolClass.IRREVERSIBLE, outcome=ToolOutcome.FAILED, seconds=1)
    finished("client", tool_class=ToolClass.IRREVERSIBLE, outcome=ToolOutcome.OK, seconds=2)
    operation = ("gen_ai.operation.name", "execute_tool")
    function = ("gen_ai.tool.type", "function")
    assert meters.points("gen_ai.execute_tool.duration") == {
        (operation, ("gen_ai.tool.name", "pay"), function): 0.25,
        (("error.type", "FAILED"), operation, ("gen_ai.tool.name", "pay"), function): 1,
        (operation, ("gen_ai.tool.name", OTHER), function): 2,
    }


def test_an_attempt_is_counted_by_agent_and_model() -> None:
    meters = Meters()
    meters.metrics.agent_finished("helper", model="small", seconds=2)
    meters.metrics.agent_finished("helper", model="small", seconds=1, error_type="LLM_TIMEOUT")
    labels = (
        ("gen_ai.agent.name", "helper"),
        ("gen_ai.operation.name", "invoke_agent"),
        ("gen_ai.provider.name", "openai"),
        ("gen_ai.request.model", "small"),
    )
    assert meters.points("gen_ai.invoke_agent.duration") == {labels: 2, (("error.type", "LLM_TIMEOUT"), *labels): 1}


def test_a_call_to_the_database_is_counted_by_its_name() -> None:
    meters = Meters()
    meters.metrics.database_finished("snapshot", database="turnkeeper", seconds=0.25)
    meters.metrics.database_finished("snapshot", database="turnkeeper", seconds=1, error_type="SERVICE_UNAVAILABLE")
    labels = (("db.namespace", "turnkeeper"), ("db.operation.name", "snapshot"), ("db.system.name", "mongodb"))
    assert meters.points("db.client.operation.duration") == {
        labels: 0.25,
        (*labels, ("error.type", "SERVICE_UNAVAILABLE")): 1,
    }


def test_a_server_of_the_configuration_is_a_label_as_it_is() -> None:
    meters = Meters()
    meters.metrics.first_chunk("small", server=("::1", 8080), seconds=1)
    (labels,) = meters.points("gen_ai.client.operation.time_to_first_chunk")
    assert ("server.address", "::1") in labels


def test_levels_rise_and_fall_and_begin_at_zero() -> None:
    meters = Meters()
    metrics = meters.metrics
    for level in ("connections", "streams", "turns"):
        assert meters.points(f"turnkeeper.{level}.active") == {(): 0}
    for change in (metrics.stream_opened, metrics.stream_opened, metrics.stream_closed, metrics.turn_began):
        change()
    metrics.connection_opened()
    metrics.connection_closed()
    metrics.turn_ended()
    metrics.set_pending_approvals(4)
    metrics.set_pending_approvals(2)
    metrics.set_active_sessions(9)
    metrics.set_waiting_turns(3, seconds=1.5)
    assert meters.points("turnkeeper.streams.active") == {(): 1}
    assert meters.points("turnkeeper.connections.active") == {(): 0}
    assert meters.points("turnkeeper.turns.active") == {(): 0}
    assert meters.points("turnkeeper.approvals.pending") == {(): 2}
    assert meters.points("turnkeeper.sessions.active") == {(): 9}
    assert meters.points("turnkeeper.turns.waiting") == {(): 3}
    assert meters.points("turnkeeper.turns.longest_wait") == {(): 1.5}


def test_no_method_has_a_parameter_that_may_not_be_a_label() -> None:
    """`model`, `agent`, `server`, `source`, `tool`, `service` and `method` are names of the operator or the protos.

    `collection` is one of nine names, `part` one of six, and `schema` a number of at most three digits. `file` is one
    of a few words.
    """
    allowed = {
        "agent", "code", "collection", "database", "decision", "error_type", "file", "kind", "limit", "method",
        "model", "operation", "outcome", "part", "reason", "role", "schema", "scope", "server", "service",
        "source", "tool", "tool_class",
        "count", "delay", "input_tokens", "output_tokens", "seconds", "size",
    }  # fmt: skip
    parameters = {
        parameter
        for _, method in methods(Metrics)
        for parameter in inspect.signature(method).parameters
        if parameter != "self"
    }
    assert parameters <= allowed


@pytest.mark.parametrize("text", IDS, ids=range(len(IDS)))
def test_an_id_never_becomes_a_label(text: str) -> None:
    meters = Meters()
    for name, method in methods(Metrics):
        getattr(meters.metrics, name)(**arguments(method, text=lambda _: text))
    values = {
        str(v) for metric in meters.read().values() for p in points(metric) for v in (p.attributes or {}).values()
    }
    assert OTHER in values
    assert not {value for value in values if (text and text in value) or re.search(r"\d{6}", value)}


@pytest.mark.parametrize("name", [*NAMES, "-dash", "/models/llama", "./llama.gguf", "~models/llama"])
def test_a_configured_name_is_a_label(name: str) -> None:
    assert label(name) == name


def test_every_enum_that_is_counted_is_a_label() -> None:
    for value in (*Role, *ToolClass, *ToolOutcome, *TurnState, *ApprovalState):
        assert label(value) == value.value
        assert type(label(value)) is str


def test_every_method_may_be_called_where_nothing_is_exported() -> None:
    metrics = Metrics(NoOpMeterProvider())
    for name, method in methods(Metrics):
        getattr(metrics, name)(**arguments(method, text=lambda _: "INTERNAL"))
