"""Each method has the kind by which an overloaded replica refuses it."""

from turnkeeper.admission.gate import Kind
from turnkeeper.pb.v1 import agent_pb2, approval_pb2, audit_pb2, chat_pb2, operator_pb2, session_pb2
from turnkeeper.rpc.kinds import adds_turn, kind_of

METHODS = [
    method
    for module in (session_pb2, chat_pb2, approval_pb2, agent_pb2, audit_pb2, operator_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def methods_of(kind: Kind) -> set[str]:
    return {method.name for method in METHODS if kind_of(method.name, is_stream=method.server_streaming) is kind}


def test_what_only_watches_is_refused_first() -> None:
    assert methods_of(Kind.WATCH) == {"WatchEvents", "ExportSession", "ExportAudit", "WatchApprovals"}


def test_then_what_brings_new_work() -> None:
    assert methods_of(Kind.MESSAGE) == {
        "SendMessage",
        "StreamMessage",
        "RetryTurn",
        "CreateSession",
        "ForkSession",
        "RestoreCheckpoint",
    }


def test_then_reads() -> None:
    assert all(name.startswith(("Count", "Get", "List", "Wait")) for name in methods_of(Kind.READ))
    assert {"GetSession", "GetTurn", "WaitApproval"} <= methods_of(Kind.READ)


def test_last_what_lets_accepted_work_end() -> None:
    assert {"DecideApproval", "SubmitToolResult", "CancelTurn", "EndSession"} <= methods_of(Kind.DECISION)


def test_three_methods_ask_for_a_turn() -> None:
    assert {method.name for method in METHODS if adds_turn(method.name)} == {
        "SendMessage",
        "StreamMessage",
        "RetryTurn",
    }
