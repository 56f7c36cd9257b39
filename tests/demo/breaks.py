"""DEMO_BREAK: the promise that the demo breaks on purpose, to show that its checks find it."""

from enum import StrEnum


class Break(StrEnum):
    """The promise that is broken: the behaviour itself, never its check."""

    NOTHING = ""
    RESUME = "resume"
    TAKEOVER = "takeover"
    APPROVAL = "approval"

    @property
    def description(self) -> str:
        """What the break changes, in a sentence."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    Break.NOTHING: "",
    Break.RESUME: "the cut client will resume from an older cursor than its last one",
    Break.TAKEOVER: "no second server will be started after the first was killed",
    Break.APPROVAL: "the agent's policy will let every tool run without an approval",
}
