"""Reads the tables of a file of agents: each value in its range, or the file is refused with the value's line."""

import difflib
import math
from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta
from typing import Any, Final, NoReturn

from turnkeeper import durations
from turnkeeper.errors import AgentConfigError
from turnkeeper.toml_file import TomlFile

RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "temperature": (0, 10),
    "max_iterations": (1, 10_000),
    "max_output_tokens": (0, 10_000_000),
    "max_attempts": (1, 100),
    "parallel_tools": (1, 1_000),
    "max_concurrent_turns": (1, 100_000),
    "k": (1, 100),
    "reject_at": (1, 100),
}
"""The least and the greatest value of each number."""
MAX_DAYS: Final[Mapping[str, int]] = {"tool_timeout": 7, "ttl": 366}
"""The longest value of each duration, in days."""
MAX_CHARACTERS: Final[Mapping[str, int]] = {
    "model": 256,
    "instructions": 262_144,
    "description": 4_096,
    "base_url": 2_048,
    "api_key_env": 128,
    "note": 1_024,
    "when": 1_024,
}
"""The greatest length of each string, in characters."""
MAX_ITEMS: Final = 1_000
"""The most agents of a file, and the most items of a list, such as the tools or the rules of an agent."""


class AgentsTable:
    """One table of the file. Its methods return a key's value, or raise AgentConfigError."""

    def __init__(self, file: TomlFile, entry: object, *, keys: tuple[str | int, ...] = (), label: str) -> None:
        """`label` is the table's name in messages; `keys` is its path in the file."""
        self._file = file
        self._keys = keys
        self.label = label
        if not isinstance(entry, Mapping):
            raise AgentConfigError(f"{file.place(*keys)}: {label} must be a table.")
        self.entry: Mapping[str, Any] = entry

    def place(self, key: str) -> str:
        """Returns FILE:LINE of a key, and the table's label."""
        return f"{self._file.place(*self._keys, key)}: {self.label}"

    def refuse(self, key: str, reason: str) -> NoReturn:
        """Raises AgentConfigError with the key's place. `reason` completes the sentence that the key begins."""
        end = "" if reason.endswith((".", "?")) else "."
        raise AgentConfigError(f"{self.place(key)}: {key} {reason}{end}")

    def check_keys(self, known: Collection[str], *, foreign: Mapping[str, str] = {}) -> None:
        """Raises AgentConfigError if the table has a key that is not known.

        `foreign`: keys of another table, each with that table's name.
        """
        for key in self.entry:
            if key not in known:
                name = key.lower().replace("-", "_")
                near = difflib.get_close_matches(name, known, n=1)
                suggestion = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(sorted(known))}."
                if name in foreign:
                    suggestion = f"{name} belongs to {foreign[name]}."
                raise AgentConfigError(f"{self.place(key)}: there is no key {key!r:.42}; {suggestion}")

    def string(self, key: str) -> str:
        """Returns a string; "" if it is not there."""
        value = self.entry.get(key, "")
        longest = MAX_CHARACTERS.get(key, MAX_CHARACTERS["api_key_env"])
        if not isinstance(value, str):
            self.refuse(key, "must be a string")
        if "\0" in value:
            self.refuse(key, "must be a string without NUL characters")
        if len(value) > longest:
            self.refuse(key, f"has more than {longest:,} characters")
        return value

    def strings(self, key: str, kind: str) -> tuple[str, ...]:
        """Returns a list of strings."""
        value = self.entry.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.refuse(key, f"must be a list of {kind}")
        if len(value) > MAX_ITEMS or any(len(item) > MAX_CHARACTERS["model"] for item in value):
            self.refuse(key, f"can have {MAX_ITEMS:,} items of {MAX_CHARACTERS['model']} characters")
        return tuple(value)

    def switch(self, key: str) -> bool:
        """Returns true or false; false if it is not there."""
        value = self.entry.get(key, False)
        if not isinstance(value, bool):
            self.refuse(key, "must be true or false")
        return value

    def number(self, key: str) -> float | None:
        """Returns a number; None if it is not there."""
        value = self.entry.get(key)
        least, most = RANGES[key]
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.refuse(key, f"must be a number from {least} to {most}")
        if not least <= value <= most:
            self.refuse(key, f"is {value!s:.40}; it must be a number from {least} to {most}")
        return value

    def count(self, key: str) -> int:
        """Returns a whole number."""
        value = self.entry[key]
        least, most = RANGES[key]
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(key, f"must be a whole number from {least:,} to {most:,}")
        if not least <= value <= most:
            self.refuse(key, f"is {value!s:.40}; it must be a whole number from {least:,} to {most:,}")
        return value

    def duration(self, key: str) -> timedelta:
        """Returns a duration above 0."""
        value, duration = self.entry[key], timedelta()
        if isinstance(value, str):
            try:
                duration = durations.parse(value)
            except ValueError:
                duration = timedelta()
        if not duration:
            self.refuse(key, f"must be a duration such as {durations.EXAMPLES}")
        if duration > timedelta(days=MAX_DAYS[key]):
            self.refuse(key, f"must be at most {MAX_DAYS[key]}d")
        return duration

    def table(self, key: str) -> "AgentsTable":
        """Returns a table inside this one; an empty one if it is not there."""
        return AgentsTable(self._file, self.entry.get(key, {}), keys=(*self._keys, key), label=f"{self.label}, {key}")

    def tables(self, key: str) -> "Iterator[AgentsTable]":
        """Yields the tables of a list of tables."""
        value = self.entry.get(key, [])
        if not isinstance(value, list):
            self.refuse(key, f"must be a list: write [[agent.{key}]]")
        if len(value) > MAX_ITEMS:
            self.refuse(key, f"can have {MAX_ITEMS:,} items")
        for number, item in enumerate(value):
            yield AgentsTable(
                self._file, item, keys=(*self._keys, key, number), label=f"{self.label}, {key} {number + 1}"
            )
