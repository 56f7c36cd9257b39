"""The users' messages and model.toml's exact answers: the checker knows every text before it is written."""

import random
from collections.abc import Sequence

WEIGHTS = {
    "say": 6,
    "tell": 38,
    "look": 4,
    "note": 6,
    "both": 6,
    "pay": 16,
    "twice": 8,
    "pledge": 5,
    "post": 5,
    "charge": 13,
    "wire": 10,
    "quote": 5,
    "order": 9,
    "file": 8,
    "ship": 12,
    "fetch": 6,
    "limit": 3,
    "crash": 3,
    "cut": 3,
}
"""The kinds of messages, and how often each is sent."""

TOOLS_OF_SERVERS = ("charge", "wire", "quote", "order", "file", "ship", "fetch")
"""The kinds that call a tool of this name at a tool server."""

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
_SHORT, _LONG = (2, 12), (60, 240)


def random_message(rng: random.Random, label: str) -> str:
    """Returns a message of any kind. `label` is in no other message of the run and holds no colon."""
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    least, most = _LONG if kind == "tell" else _SHORT
    text = "".join(rng.choices(_SYLLABLES, k=rng.randint(least, most))).strip()
    return f"{kind} {label}: {text}"


def text_with_calls(user_text: str) -> str:
    """Returns the text beside the tool calls that answer the message; empty if it has none."""
    return f"Let me see: {user_text}" if _kind(user_text) in _WITH_TOOLS else ""


def answer(user_text: str, results: Sequence[str]) -> str:
    """Returns the last text of the message's turn. `results`: its tools' results in the order of their calls."""
    match _kind(user_text):
        case "tell":
            return f"Once more: {user_text}"
        case "both" | "twice":
            return f"Both have answered: {user_text}"
        case kind if kind in _WITH_TOOLS:
            return f"The tool said: {results[-1] if results else ''}"
        case _:
            return f"You said: {user_text}"


def broken_off_text(user_text: str) -> str:
    """Returns the text of a model call that breaks off; empty for messages whose calls never do."""
    return f"This is not what the message will be: {user_text}" if _kind(user_text) == "cut" else ""


def _kind(user_text: str) -> str:
    return user_text.partition(" ")[0]


_WITH_TOOLS = frozenset({"look", "note", "both", "pay", "twice", "pledge", "post", *TOOLS_OF_SERVERS})
