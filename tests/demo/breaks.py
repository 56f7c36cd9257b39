"""DEMO_BREAK: which promise the demo breaks on purpose, to show that its checks would see it."""

from enum import StrEnum


class Break(StrEnum):
    """What is broken: the thing itself, never its check."""

    NOTHING = ""
    RESUME = "resume"
    TAKEOVER = "takeover"
    APPROVAL = "approval"

    @property
    def said(self) -> str:
        """What is different, for people."""
        return _SAID[self]


_SAID = {
    Break.NOTHING: "",
    Break.RESUME: "the cut client will resume from an older cursor than its last one",
    Break.TAKEOVER: "no second server will be started after the first was killed",
    Break.APPROVAL: "the agent's policy will let every tool run without asking a person",
}
