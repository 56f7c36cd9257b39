"""Each method of ours declares its roles; gRPC's own services have rules of their own."""

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

from turnkeeper.identity.caller import AccessRole
from turnkeeper.pb.v1 import access_pb2
from turnkeeper.rpc import health, reflection
from turnkeeper.rpc.access import ANY_CREDENTIAL, CHANNELZ, OPEN, PLATFORM, AccessRules, Undeclared
from turnkeeper.rpc.server import OUR_FILES, SERVICES

RULES = AccessRules(OUR_FILES)


def test_every_method_of_ours_declares_its_roles() -> None:
    methods = {
        (service.full_name, method.name)
        for file in OUR_FILES
        for service in file.services_by_name.values()
        for method in service.methods
    }
    assert {service for service, _ in methods} == set(SERVICES)
    assert set(RULES.by_method) == methods
    assert all(access.roles for access in RULES.by_method.values())


def test_a_method_without_roles_stops_the_start() -> None:
    file = FileDescriptorProto(name="bare.proto", package="turnkeeper.v1")
    file.message_type.add(name="Nothing")
    service = file.service.add(name="BareService")
    service.method.add(name="Bare", input_type=".turnkeeper.v1.Nothing", output_type=".turnkeeper.v1.Nothing")
    pool = DescriptorPool()
    pool.Add(file)  # type: ignore[no-untyped-call]
    with pytest.raises(Undeclared, match=r"turnkeeper\.v1\.BareService\.Bare"):
        AccessRules([pool.FindFileByName("bare.proto")])  # type: ignore[no-untyped-call]


def test_the_roles_of_the_protos_are_those_of_the_service() -> None:
    names = {name.removeprefix("ACCESS_ROLE_").lower() for name in access_pb2.AccessRole.keys()}  # noqa: SIM118
    assert names - {"unspecified"} == set(AccessRole)


def test_health_is_open_reflection_takes_any_credential_and_channelz_is_the_platforms() -> None:
    assert RULES.of(health.NAME, "Check") == OPEN
    assert {RULES.of(name, "ServerReflectionInfo") for name in reflection.NAMES} == {ANY_CREDENTIAL}
    assert RULES.of(CHANNELZ, "GetServers") == PLATFORM
    assert RULES.of("other.v1.Service", "Any") == PLATFORM


def test_a_delegate_calls_nothing_by_itself() -> None:
    assert not any(AccessRole.DELEGATE in access.roles for access in RULES.by_method.values())
