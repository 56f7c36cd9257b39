"""Every field of every request, at any depth, with each value that its type can hold and its meaning may not."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from tests import harness
from tests.e2e.support.environment import AGENTS
from tests.e2e.support.foreign import METHODS, SCRIPT, Belongings, Owner, build
from tests.identities import row, settings_of
from tests.test_tools import ToolControl
from turnkeeper.identity.caller import AccessRole
from turnkeeper.pb.v1 import operator_pb2

NAME: Final = "acme/anna"
LAST: Final = ("RestoreCheckpoint", "CancelTurns", "SuspendSession", "EndSession", "DeleteSession", "UndeleteSession")
"""What changes the answers to all other methods."""
ENDS: Final = (-(2**63), -1, 0, 2**31 - 1, 2**63 - 1)
TEXTS: Final = ("\0", "$where", "x" * 5000)
TIMES: Final = ((2**63 - 1, 0), (-(2**63), 0), (0, -1), (120, 2**31 - 1))
"""Seconds and nanoseconds."""
REQUESTS: Final[Mapping[str, Callable[[], Any]]] = {
    "CancelTurns": lambda: operator_pb2.CancelTurnsRequest(filter=operator_pb2.TurnFilter(), expected_count=9999),
    "DenyTool": lambda: operator_pb2.DenyToolRequest(tenant="acme", pattern="not_there", reason="a try"),
    "AllowTool": lambda: operator_pb2.AllowToolRequest(tenant="acme", pattern="not_there"),
    "FreezeAdmission": lambda: operator_pb2.FreezeAdmissionRequest(tenant="acme", agent="hasty", reason="a try"),
}
"""What `Belongings.request` does not know."""
AT_ONCE: Final = 8
NUMBERS: Final = frozenset(
    (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64)
)
VALUES: Final[Mapping[str, Any]] = {
    "google.protobuf.Duration": [Duration(seconds=seconds, nanos=nanos) for seconds, nanos in TIMES],
    "google.protobuf.Timestamp": [Timestamp(seconds=seconds, nanos=nanos) for seconds, nanos in TIMES],
}


def values_of(field: FieldDescriptor) -> list[Any]:
    """Returns values for a field; none for one whose own fields are tried instead."""
    if field.message_type is not None:
        return list(VALUES.get(field.message_type.full_name, ()))
    if field.type == FieldDescriptor.TYPE_STRING:
        return list(TEXTS)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return [-1, 99]
    if field.type == FieldDescriptor.TYPE_BOOL:
        return [True, False]
    if field.type in NUMBERS:
        small = field.type in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_UINT32)
        signed = field.type in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64)
        fitting = (number for number in ENDS if signed or number >= 0)
        return [number for number in fitting if not small or abs(number) <= 2**31]
    return []


def paths(message: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldDescriptor]]:
    """Yields each field that has values, with its path; also those of messages inside, three deep."""
    for field in message.DESCRIPTOR.fields:
        yield (*path, field.name), field
        is_ours = field.message_type is not None and field.message_type.full_name.startswith("turnkeeper.")
        if is_ours and not field.is_repeated and len(path) < 3:
            yield from paths(getattr(message, field.name), (*path, field.name))


def variants(request: Any) -> Iterator[tuple[str, Any]]:
    """Yields copies of a request with one value changed, each with the path of its field."""
    for path, field in paths(request):
        for value in values_of(field) if field.name != "follow" else ():
            copy = type(request)()
            copy.CopyFrom(request)
            parent = copy
            for step in path[:-1]:
                parent = getattr(parent, step)
            change(parent, field, value)
            yield ".".join(path), copy


def change(parent: Any, field: FieldDescriptor, value: Any) -> None:
    if field.message_type is not None:
        (getattr(parent, field.name).add() if field.is_repeated else getattr(parent, field.name)).CopyFrom(value)
    elif field.is_repeated:
        getattr(parent, field.name).append(value)
    else:
        setattr(parent, field.name, value)


async def test_no_value_of_any_field_is_a_defect(
    mongo_uri: str, database_name: str, tmp_path: Path, tool_control: ToolControl
) -> None:
    settings = settings_of(tmp_path, row("anna", tenant="acme", roles=[role.value for role in AccessRole]))
    defects: dict[str, str] = {}
    limit, tried = asyncio.Semaphore(AT_ONCE), 0
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, database_name, model, agents=AGENTS, **settings) as running,
        aio.insecure_channel(running.address) as channel,
    ):
        anna = Owner(name=NAME, channel=channel)
        owned = await build(anna)
        requests = {method: await request_of(owned, method) for method in METHODS}

        async def call(method: str, path: str, request: Any) -> None:
            try:
                async with limit:
                    outcome = await anna.call(method, request)
            except TimeoutError:
                defects[f"{method} {path}"] = "no answer"
                return
            if outcome.status in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
                defects[f"{method} {path}"] = f"{outcome.status.name} {outcome.message}"

        for method in sorted(METHODS, key=lambda name: name in LAST and LAST.index(name) + 1):
            changed = list(variants(requests[method]))
            tried += len(changed)
            await asyncio.gather(*(call(method, *variant) for variant in changed))
    assert defects == {}
    assert tried > 400


async def request_of(owned: Belongings, method: str) -> Any:
    """Returns a request that is in order and waits for nothing. One for the first page: a token is of one filter."""
    request = REQUESTS[method]() if method in REQUESTS else await owned.request(method)
    for name in {"wait", "page_token"}.intersection(request.DESCRIPTOR.fields_by_name):
        request.ClearField(name)
        if name == "wait":
            request.wait.SetInParent()
    return request
