"""Who may decide an approval, as a rule of a policy states it."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Approvers:
    """The people who may decide an approval, and how many of them it takes."""

    groups: frozenset[str] = frozenset()
    """Members of any of these groups may decide. Without groups and principals, any approver may."""
    principals: frozenset[str] = frozenset()
    """These principals may decide."""
    k: int = 1
    """Distinct persons who must approve."""
    exclude_requester: bool = True
    """True: who caused the call decides nothing about it."""
    veto: bool = True
    """True: one rejection ends the approval."""
    reject_at: int = 0
    """Without `veto`: rejections that end the approval; 0: as many as `k`."""
    direct: bool = False
    """True: a decision that a delegate carries is refused."""
    remember: bool = True
    """False: a decision cannot be remembered for later calls."""

    def name(self, person: str, groups: frozenset[str]) -> bool:
        """Returns True if they name the person, or one of the person's groups, or none of either."""
        if not self.groups and not self.principals:
            return True
        return person in self.principals or not groups.isdisjoint(self.groups)


ANYBODY: Final = Approvers()
"""Where a rule names no approvers: one person with the role, who did not cause the call."""
