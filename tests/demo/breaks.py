"""DEMO_BREAK: the promises that the demo breaks on purpose, to show that its checks find it."""

from enum import StrEnum


class Break(StrEnum):
    """The promise that is broken: the behaviour itself, never its check."""

    RESUME = "resume"
    TAKEOVER = "takeover"
    APPROVAL = "approval"

    @property
    def description(self) -> str:
        """What the break changes, in a sentence."""
        return _DESCRIPTIONS[self]


def breaks_of(text: str) -> frozenset[Break]:
    """Returns the breaks that a text names, separated by commas; none for an empty one. Raises ValueError."""
    return frozenset(Break(name) for name in text.split(",")) if text else frozenset()


_DESCRIPTIONS = {
    Break.RESUME: "the cut client will resume from an older cursor than its last one",
    Break.TAKEOVER: "no second server will be started after the first was killed",
    Break.APPROVAL: "the agent's policy will let every tool run without an approval",
}
