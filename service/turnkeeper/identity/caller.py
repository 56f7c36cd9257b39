"""The caller of an RPC: the principal that the call counts for, and what its roles let it do."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Self

from turnkeeper.domain.session import SessionKey
from turnkeeper.errors import PermissionDenied
from turnkeeper.store.changeset import RequestKey


class AccessRole(StrEnum):
    """What a principal may do. Each RPC names the roles that may call it."""

    CALLER = "caller"
    """Uses the sessions that it owns."""
    APPROVER = "approver"
    """Decides approvals, and reads their sessions while they are open or once it has voted on one."""
    OPERATOR = "operator"
    """Manages all sessions of its tenant."""
    AUDITOR = "auditor"
    """Reads all of its tenant."""
    DELEGATE = "delegate"
    """Acts on behalf of persons of its tenant, with their roles CALLER and APPROVER."""
    PLATFORM = "platform"
    """Operates the service for all tenants."""


LENDABLE: Final = frozenset({AccessRole.CALLER, AccessRole.APPROVER})
"""The roles of a person that a delegate gets: it never operates or audits on behalf of anybody."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who called: the principal that the call counts for, and the tenant whose sessions it sees."""

    tenant: str
    principal: str
    """The owner of what the call creates, the decider of what it decides. With a delegate: the person behind it."""
    groups: frozenset[str] = frozenset()
    """Names of the operator's, such as "finance"."""
    roles: frozenset[AccessRole] = frozenset()
    credential_id: str = ""
    """The checked credential's id; empty with identity `none`. Of a delegate: the delegate's."""
    through: str = ""
    """The principal of the delegate that made the call on the person's behalf; empty without one."""

    @property
    def on_behalf_of(self) -> str | None:
        """Returns the person for whom a delegate made the call, or None if no delegate made it."""
        return self.principal if self.through else None

    @property
    def actor(self) -> str:
        """Returns the principal whose credential made the call: the delegate's where there is one."""
        return self.through or self.principal

    @property
    def is_identified(self) -> bool:
        """Returns True unless identity is `none`, where all callers are one."""
        return bool(self.credential_id)

    @property
    def sees_tenant(self) -> bool:
        """Returns True if all sessions of the tenant are the caller's to see, not only its own."""
        return not self.roles.isdisjoint((AccessRole.OPERATOR, AccessRole.AUDITOR))

    def owns(self, owner: str) -> bool:
        """Returns True if the caller uses what this principal owns."""
        return AccessRole.CALLER in self.roles and owner == self.principal

    def sees(self, owner: str) -> bool:
        """Returns True if the caller may see what this principal owns. An approver may see more, by its approvals."""
        return self.sees_tenant or self.owns(owner)

    def within(self, roles: Iterable[AccessRole]) -> Self:
        """Returns the caller with those of its roles that are among `roles`, such as the roles of the called method."""
        return replace(self, roles=self.roles.intersection(roles))

    def in_tenant(self, tenant: str) -> Self:
        """Returns the caller as it acts in the tenant that an operator call names; in its own for an empty name.

        Raises PermissionDenied for another tenant unless the caller has the role PLATFORM.
        """
        if tenant in ("", self.tenant):
            return self
        if AccessRole.PLATFORM not in self.roles:
            raise PermissionDenied("Only the role platform may name another tenant; leave tenant empty.")
        return replace(self, tenant=tenant)

    def session_key(self, session_id: str) -> SessionKey:
        """Returns the key of the session with this id in the caller's tenant."""
        return SessionKey(self.tenant, session_id)

    def request_key(self, request_id: str, *, family: str, session_id: str) -> RequestKey:
        """Returns the key under which a request of this caller is recorded; its repeats have the same key."""
        return RequestKey(
            tenant=self.tenant,
            session_id=session_id,
            principal=self.principal,
            family=family,
            request_id=request_id,
        )


DEFAULT_CALLER: Final = Caller(tenant="default", principal="default", roles=frozenset(AccessRole))
"""Every caller with identity `none`: it may do everything."""
