"""What a caller sees, and in which tenant it acts."""

import pytest

from turnkeeper.errors import PermissionDenied
from turnkeeper.identity.caller import AccessRole, Caller


def caller(*roles: AccessRole) -> Caller:
    return Caller(tenant="acme", principal="anna", roles=frozenset(roles))


@pytest.mark.parametrize(
    ("roles", "own", "foreign"),
    [
        ((AccessRole.CALLER,), True, False),
        ((AccessRole.OPERATOR,), True, True),
        ((AccessRole.AUDITOR,), True, True),
        ((AccessRole.APPROVER, AccessRole.DELEGATE, AccessRole.PLATFORM), False, False),
    ],
)
def test_roles_decide_whose_sessions_a_caller_sees(roles: tuple[AccessRole, ...], own: bool, foreign: bool) -> None:
    assert caller(*roles).sees("anna") is own
    assert caller(*roles).sees("bob") is foreign


def test_a_method_narrows_the_roles() -> None:
    both = caller(AccessRole.CALLER, AccessRole.OPERATOR)
    assert both.sees("bob")
    assert not both.within({AccessRole.CALLER}).sees("bob")


def test_only_the_platform_names_another_tenant() -> None:
    assert caller(AccessRole.OPERATOR).in_tenant("acme").tenant == "acme"
    assert caller(AccessRole.OPERATOR).in_tenant("").tenant == "acme"
    assert caller(AccessRole.PLATFORM).in_tenant("globex").tenant == "globex"
    with pytest.raises(PermissionDenied):
        caller(AccessRole.OPERATOR).in_tenant("globex")
