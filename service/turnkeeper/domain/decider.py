"""A person who decides approvals, by the person's own authority or by one that another has lent."""

from dataclasses import dataclass
from typing import Final

from turnkeeper.domain.approvers import Approvers

ANYBODY_KEY: Final = "any"
"""The key of approvals that any approver may decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mandate:
    """The authority of a person to decide approvals."""

    person: str
    groups: frozenset[str] = frozenset()
    """Of that person."""
    through: str = ""
    """The delegate that lent it on behalf of the person; empty without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decider:
    """A person who decides approvals, or for whose decision they wait; see `votes`."""

    person: str
    """A principal. With a delegate: the person behind it."""
    mandates: tuple[Mandate, ...] = ()
    """The person's own authority first, then those that others have lent; without one nothing waits for the person."""
    through: str = ""
    """The delegate that acts on behalf of the person; empty without one."""
    identified: bool = True
    """False with identity `none`, where all callers are one: a single approver decides, whatever the rule states."""


def keys_of(approvers: Approvers) -> tuple[str, ...]:
    """Returns the keys under which approvals are found by those who may decide them."""
    if not approvers.groups and not approvers.principals:
        return (ANYBODY_KEY,)
    groups, persons = sorted(approvers.groups), sorted(approvers.principals)
    return (*(f"group:{name}" for name in groups), *(f"person:{name}" for name in persons))


def keys_for(mandate: Mandate) -> tuple[str, ...]:
    """Returns the keys of the approvals that this authority may decide."""
    return (ANYBODY_KEY, f"person:{mandate.person}", *(f"group:{name}" for name in sorted(mandate.groups)))
