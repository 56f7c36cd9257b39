"""Our RPCs by how long they take: what proxies must know of each."""

from collections.abc import Iterator
from typing import Final

from google.protobuf.descriptor import MethodDescriptor

from turnkeeper.pb.v1 import agent_pb2, approval_pb2, audit_pb2, chat_pb2, operator_pb2, session_pb2

WAITS: Final = {"SendMessage", "GetTurn", "WaitApproval"}
_MODULES: Final = (agent_pb2, approval_pb2, audit_pb2, chat_pb2, operator_pb2, session_pb2)


def methods() -> Iterator[MethodDescriptor]:
    """Yields every method of our services."""
    for module in _MODULES:
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from service.methods


def paths(*, waits: bool = False) -> set[str]:
    """Returns the paths of our waiting calls, or else of our streams."""
    return {
        f"/{method.containing_service.full_name}/{method.name}"
        for method in methods()
        if (method.name in WAITS if waits else method.server_streaming)
    }
