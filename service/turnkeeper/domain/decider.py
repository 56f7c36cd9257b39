"""A person whose decision approvals wait for: which of them, by the person's own authority or a lent one."""

from dataclasses import dataclass
from typing import Final

from turnkeeper.domain.approval import Approval, ApprovalState, Mandate
from turnkeeper.domain.approvers import Approvers

ANYBODY_KEY: Final = "any"
"""The key of approvals that any approver may decide."""


def keys_of(approvers: Approvers) -> tuple[str, ...]:
    """Returns the keys under which approvals are found by those who may decide them."""
    if not approvers.groups and not approvers.principals:
        return (ANYBODY_KEY,)
    groups, persons = sorted(approvers.groups), sorted(approvers.principals)
    return (*(f"group:{name}" for name in groups), *(f"person:{name}" for name in persons))


def keys_for(mandate: Mandate) -> tuple[str, ...]:
    """Returns the keys of the approvals that this authority may decide."""
    return (ANYBODY_KEY, f"person:{mandate.person}", *(f"group:{name}" for name in sorted(mandate.groups)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decider:
    """Selects the approvals that wait for a person's decision."""

    person: str
    mandates: tuple[Mandate, ...] = ()
    """The person's own authority, and those that others have lent; without one nothing waits for the person."""
    through: bool = False
    """A delegate acts on the person's behalf."""
    identified: bool = True
    """False with identity `none`: every approval waits for the one caller."""

    def is_asked(self, approval: Approval) -> bool:
        """Returns True if the person may decide the approval while it is PENDING: it is named, and did not cause it."""
        if not self.identified:
            return True
        excluded, direct = approval.excluded, approval.approvers.direct
        if self.person in excluded or (self.through and direct):
            return False
        return any(
            mandate.person not in excluded
            and not (direct and mandate.through)
            and approval.approvers.name(mandate.person, mandate.groups)
            for mandate in self.mandates
        )

    def has_to_decide(self, approval: Approval) -> bool:
        """Returns True if the approval waits for the person: it is PENDING, and the person has not voted."""
        voted = any(self.person in vote.people for vote in approval.counted_votes)
        return approval.state is ApprovalState.PENDING and not voted and self.is_asked(approval)
