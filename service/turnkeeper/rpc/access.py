"""Who may call which method: the option `turnkeeper.v1.access` of each of our methods, and the rules of gRPC's own."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from grpc_channelz.v1 import channelz_pb2

from turnkeeper.identity.caller import AccessRole
from turnkeeper.pb.v1 import access_pb2
from turnkeeper.rpc import health, reflection

CHANNELZ: Final[str] = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name


class Undeclared(Exception):
    """A method of this service does not declare who may call it."""


@dataclass(frozen=True, slots=True)
class Access:
    """What a method asks of its callers."""

    roles: frozenset[AccessRole] = frozenset()
    """A caller needs one of them; none if any caller with a valid credential may call the method."""
    needs_credential: bool = True


OPEN: Final = Access(needs_credential=False)
ANY_CREDENTIAL: Final = Access()
PLATFORM: Final = Access(frozenset({AccessRole.PLATFORM}))

_OTHERS: Final[Mapping[str, Access]] = {
    health.NAME: OPEN,
    CHANNELZ: PLATFORM,
    **dict.fromkeys(reflection.NAMES, ANY_CREDENTIAL),
}
"""The access to gRPC's own services; PLATFORM to any other."""


class AccessRules:
    """The access to each method of the server."""

    def __init__(self, files: Iterable[FileDescriptor]) -> None:
        """`files` declare our services. Raises Undeclared if a method of theirs does not declare its roles."""
        self.by_method: Mapping[tuple[str, str], Access] = {
            (service.full_name, method.name): _declared(method)
            for file in files
            for service in file.services_by_name.values()
            for method in service.methods
        }

    def of(self, service: str, method: str) -> Access:
        """Returns what this method, by the full name of its service, asks of its callers."""
        declared = self.by_method.get((service, method))
        return declared if declared is not None else _OTHERS.get(service, PLATFORM)

    def matrix(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """Returns the table for the documents: its head with the roles, and a row for each method."""
        roles = [role for role in AccessRole if any(role in access.roles for access in self.by_method.values())]
        rows = [
            (f"`{method}`", *("yes" if role in access.roles else "" for role in roles))
            for (_, method), access in self.by_method.items()
        ]
        return ("method", *(f"`{role}`" for role in roles)), rows


def _declared(method: MethodDescriptor) -> Access:
    roles = [access_pb2.AccessRole.Name(number) for number in method.GetOptions().Extensions[access_pb2.access].roles]
    if not roles:
        raise Undeclared(f"{method.full_name} has no option (turnkeeper.v1.access): declare the roles that may call it")
    return Access(frozenset(AccessRole(name.removeprefix("ACCESS_ROLE_").lower()) for name in roles))
