"""The verbs on delegations: a person lends its authority to decide approvals, sees what is lent, takes it back."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol

from turnkeeper.domain.audit import AuditRecord, Origin
from turnkeeper.domain.decider import Decider, Mandate
from turnkeeper.domain.delegation import Delegation
from turnkeeper.engine.eventlog.sources import Sources
from turnkeeper.errors import InvalidRequest, PermissionDenied, QuotaExceeded
from turnkeeper.identity.caller import AccessRole, Caller
from turnkeeper.identity.principals import Principals
from turnkeeper.store.audit import AuditStore
from turnkeeper.store.delegations import DelegationStore

ME: Final = "@me"
"""Names the caller itself."""
LONGEST: Final = timedelta(days=30)
"""How long a delegation lasts at most."""
CLOCK_SLACK: Final = timedelta(minutes=1)
"""How far a caller's clock may be ahead where it asks for the longest time."""
MOST_GIVEN: Final = 100
"""Delegations of one person that are in force at a time."""
MOST_RECEIVED: Final = 1000
"""Delegations to one person that are in force at a time: a vote looks at all of them."""


class _DelegationAudit(DelegationStore, AuditStore, Protocol):
    """What the verbs need."""


class Delegations:
    """The verbs on delegations."""

    def __init__(self, store: _DelegationAudit, principals: Principals, *, sources: Sources) -> None:
        self._store = store
        self._principals = principals
        self._sources = sources

    async def delegate(self, caller: Caller, delegate: str, *, until: datetime, origin: Origin) -> Delegation:
        """Lends the caller's authority to `delegate`, in place of an earlier delegation to the same one.

        Raises InvalidRequest unless `delegate` is another approver of the tenant, and `until` within LONGEST; and
        QuotaExceeded beyond MOST_GIVEN of the caller or MOST_RECEIVED of the delegate.
        """
        now = self._sources.now()
        if problems := self._problems(caller, delegate, until=until, now=now):
            listed = "; ".join(f"{field} {problem}" for field, problem in problems.items())
            raise InvalidRequest(f"The request is not valid: {listed}.", fields=problems)
        given = await self.listed(caller.tenant, concerning=caller.principal, limit=MOST_GIVEN + MOST_RECEIVED)
        others = [lent for lent in given if lent.person == caller.principal and lent.delegate != delegate]
        if len(others) >= MOST_GIVEN:
            raise QuotaExceeded(f"You have delegated to {MOST_GIVEN} others; revoke a delegation first.")
        received = await self._store.delegations(caller.tenant, delegate=delegate, limit=MOST_RECEIVED + 1)
        if sum(lent.person != caller.principal for lent in received) >= MOST_RECEIVED:
            raise QuotaExceeded(
                f"{delegate} has {MOST_RECEIVED:,} delegations already; delegate to another approver, or let one of "
                "those who have delegated to this one revoke it first."
            )
        delegation = Delegation(
            tenant=caller.tenant,
            person=caller.principal,
            delegate=delegate,
            until=until,
            create_time=now,
            through=caller.through,
        )
        await self._store.put_delegation(
            delegation, self._record(delegation, "delegate_approvals", outcome="DELEGATED", origin=origin)
        )
        return delegation

    async def revoke(self, tenant: str, person: str, delegate: str, *, origin: Origin) -> bool:
        """Ends a delegation; votes that were cast by it stay. Returns False if there is none."""
        now = self._sources.now()
        ended = Delegation(tenant=tenant, person=person, delegate=delegate, until=now, create_time=now)
        record = self._record(ended, "revoke_approval_delegation", outcome="REVOKED", origin=origin)
        return await self._store.remove_delegation(tenant, person, delegate, record)

    async def listed(
        self, tenant: str, *, concerning: str, limit: int, after: tuple[str, str] | None = None
    ) -> Sequence[Delegation]:
        """Returns a page of the delegations in force that this principal has given or received; empty: of all."""
        return await self._store.delegations(tenant, concerning=concerning, limit=limit, after=after)

    async def decider_of(self, caller: Caller) -> Decider:
        """Returns the caller as it decides: with its own authority, and with what others have lent to it."""
        if not caller.is_identified:
            return Decider(person=caller.principal, identified=False)
        return await self._decider(caller)

    async def decider(self, caller: Caller, name: str) -> Decider:
        """Returns the approver of this name in the caller's tenant; `@me`: the caller. Nothing waits for one who is
        none.

        Raises PermissionDenied if another than an operator names another person.
        """
        if name in (ME, caller.principal):
            return await self.decider_of(caller) if AccessRole.APPROVER in caller.roles else Decider(person=name)
        if AccessRole.OPERATOR not in caller.roles:
            raise PermissionDenied(f"Only the role operator may ask what another person may decide; ask for {ME}.")
        person = self._approver(caller.tenant, name)
        return await self._decider(person) if person is not None else Decider(person=name)

    async def _decider(self, person: Caller) -> Decider:
        """Returns the person with its own authority, and with what persons that are approvers now have lent to it.

        They lend what the principals file gives to themselves.
        """
        lent = await self._store.delegations(person.tenant, delegate=person.principal, limit=MOST_RECEIVED)
        lenders = ((self._approver(person.tenant, one.person), one.through) for one in lent)
        return Decider(
            person=person.principal,
            mandates=(
                Mandate(person=person.principal, groups=person.groups),
                *(
                    Mandate(person=lender.principal, groups=lender.groups, through=through)
                    for lender, through in lenders
                    if lender is not None
                ),
            ),
            through=person.through,
        )

    def _approver(self, tenant: str, name: str) -> Caller | None:
        """Returns the person of this name if it has the role approver now."""
        person = self._principals.person(tenant, name)
        return person if person is not None and AccessRole.APPROVER in person.roles else None

    def _problems(self, caller: Caller, delegate: str, *, until: datetime, now: datetime) -> dict[str, str]:
        problems = {}
        if delegate == caller.principal:
            problems["principal"] = "must be another one than the caller"
        elif self._approver(caller.tenant, delegate) is None:
            problems["principal"] = "must have the role approver in the principals file of this tenant"
        if not now < until <= now + LONGEST + CLOCK_SLACK:
            problems["until"] = f"must be in the future, at most {LONGEST.days} days from now"
        return problems

    def _record(self, delegation: Delegation, action: str, *, outcome: str, origin: Origin) -> AuditRecord:
        return AuditRecord(
            tenant=delegation.tenant,
            id=self._sources.new_id(),
            at=self._sources.now(),
            action=action,
            target=delegation.delegate,
            outcome=outcome,
            origin=origin,
            details={"person": delegation.person, "until": delegation.until.isoformat(timespec="milliseconds")},
        )
