"""What users say, and the exact answers that model.toml gives: the checker knows every text before it is written."""

import random
from collections.abc import Sequence

WEIGHTS = {
    "say": 8,
    "tell": 26,
    "look": 7,
    "note": 9,
    "both": 8,
    "pay": 26,
    "twice": 13,
    "pledge": 6,
    "post": 5,
    "limit": 3,
    "crash": 3,
    "cut": 3,
}
"""The kinds of messages, and how often each is sent."""

_SYLLABLES = (
    "lo",
    "žluť",
    "keeper ",
    "über",
    "日本",
    "語 ",
    "naïve ",
    "🦆",
    "storm ",
    "na",
    "ту́рн ",
    "e\u0301t ",
    "—",
    "ok ",
)
_SHORT, _LONG = (2, 12), (20, 120)


def message(rng: random.Random, label: str) -> str:
    """A message of any kind; `label` is in no other message of the run and holds no colon."""
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    least, most = _LONG if kind == "tell" else _SHORT
    text = "".join(rng.choices(_SYLLABLES, k=rng.randint(least, most))).strip()
    return f"{kind} {label}: {text}"


def asking(said: str) -> str:
    """The text beside the tool calls that answer the message; empty when it asks for none."""
    return f"Let me see: {said}" if _kind(said) in _WITH_TOOLS else ""


def answer(said: str, results: Sequence[str]) -> str:
    """The last text of the message's turn. `results`: what its tools told the model, by their places."""
    match _kind(said):
        case "tell":
            return f"Once more: {said}"
        case "both" | "twice":
            return f"Both have answered: {said}"
        case kind if kind in _WITH_TOOLS:
            return f"The tool said: {results[-1] if results else ''}"
        case _:
            return f"You said: {said}"


def spoilt(said: str) -> str:
    """What the model begins to say when it is about to break off; empty for messages that it never breaks off."""
    return f"This is not what the message will be: {said}" if _kind(said) == "cut" else ""


def _kind(said: str) -> str:
    return said.partition(" ")[0]


_WITH_TOOLS = frozenset({"look", "note", "both", "pay", "twice", "pledge", "post"})
