"""Reads agents from a TOML file. The format is published in docs/reference/agents.md."""

import difflib
import json
import logging
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, NoReturn

import orjson

from turnkeeper import durations, toml_file
from turnkeeper.domain.agent import Agent, AgentLimits, PolicyRule
from turnkeeper.domain.tool import PolicyAction
from turnkeeper.errors import AgentConfigError
from turnkeeper.model.dialect import LIMIT_NAMES
from turnkeeper.model.openai_client import check_address, check_header
from turnkeeper.model.request_shape import NEEDED
from turnkeeper.toml_file import TomlError, TomlFile
from turnkeeper.tools.toolbox import Toolbox

SAMPLES: Final = Path(__file__).with_name("agents.toml")
"""The agents of a server that is started without `--agents`."""
MAX_BYTES: Final = 4 << 20
"""The greatest size of the file. A longer one is a mistake, such as a log or a device."""
RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "temperature": (0, 10),
    "max_iterations": (1, 10_000),
    "max_output_tokens": (0, 10_000_000),
    "max_attempts": (1, 100),
    "parallel_tools": (1, 1_000),
    "max_concurrent_turns": (1, 100_000),
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
}
"""The greatest length of each string, in characters."""
MAX_ITEMS: Final = 1_000
"""The most agents of a file, and the most items of a list, such as the tools or the rules of an agent."""
MAX_EXTRA_BODY: Final = 65_536
"""The greatest size of `extra_body` as JSON, in bytes."""
logger = logging.getLogger(__name__)

_KEYS: Final = frozenset(field.name.removesuffix("_json") for field in fields(Agent))
_LIMITS: Final = {field.name: field.type for field in fields(AgentLimits)}
_OWN_KEYS: Final = {
    "model": "model",
    "temperature": "temperature",
    "tools": "tools",
    **dict.fromkeys(LIMIT_NAMES, "max_output_tokens of limits"),
}
"""Fields of a model's request that the agent sets by a key of its own, and that key."""
_NAME: Final = re.compile(r"[a-z0-9_-]{1,64}")
_FIELD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def load(path: Path, *, default_model: str, toolbox: Toolbox | None = None) -> Mapping[str, Agent]:
    """Returns the file's agents by name. Raises AgentConfigError, which names file, line, agent and key.

    With a `toolbox`, the agents' tools are compared with its tools. An unknown name is refused; while a source of tools
    is out of reach it is logged as a WARNING, and so is a pattern that matches no tool.
    """
    file = _read(path)
    agents: dict[str, Agent] = {}
    for number, entry in enumerate(_entries(file)):
        table = _Table(file, entry, keys=("agent", number), label=f"agent {number + 1}")
        agent = _agent(table, default_model=default_model)
        if toolbox is not None:
            _check_tools(table, toolbox)
        if agent.name in agents:
            table.refuse("name", f"is {agent.name}, as of an agent before")
        agents[agent.name] = agent
    return agents


def _read(path: Path) -> TomlFile:
    try:
        return toml_file.read(path, max_bytes=MAX_BYTES)
    except TomlError as error:
        if error.line:
            raise AgentConfigError(f"{path}:{error.line}: this is not TOML: {error}.") from None
        if not path.exists():
            raise AgentConfigError(f"There is no file {path}; --agents names a TOML file of agents.") from None
        raise AgentConfigError(f"The file of agents {path} cannot be read: {error}.") from None


def _entries(file: TomlFile) -> list[object]:
    _Table(file, file.values, label="the file").check_keys({"agent"})
    entries = file.values.get("agent", [])
    if not isinstance(entries, list) or not entries:
        raise AgentConfigError(f"{file.place('agent')}: the file has no [[agent]].")
    if len(entries) > MAX_ITEMS:
        raise AgentConfigError(f"{file.place('agent', MAX_ITEMS)}: a file can have {MAX_ITEMS:,} agents.")
    return entries


def _agent(table: "_Table", *, default_model: str) -> Agent:
    name = table.entry.get("name", "")
    is_name = isinstance(name, str) and _NAME.fullmatch(name) is not None
    if is_name:
        table.label += f" ({name})"
    table.check_keys(_KEYS, foreign=_LIMITS)
    if not is_name:
        table.refuse("name", f"must match {_NAME.pattern}")
    return Agent(
        name=name,
        model=table.string("model") or default_model,
        instructions=table.string("instructions"),
        description=table.string("description"),
        base_url=_base_url(table),
        api_key_env=_api_key_env(table),
        temperature=table.number("temperature"),
        limit_field=_limit_field(table),
        omit=_omit(table),
        extra_headers=tuple(_headers(table.table("extra_headers"))),
        extra_body_json=_extra_body(table),
        follow_redirects=table.switch("follow_redirects"),
        tools=table.strings("tools", "names or patterns"),
        policy=tuple(_rule(rule) for rule in table.tables("policy")),
        limits=_limits(table.table("limits")),
        max_concurrent_turns=table.count("max_concurrent_turns") if "max_concurrent_turns" in table.entry else 0,
    )


def _check_tools(table: "_Table", toolbox: Toolbox) -> None:
    """Raises AgentConfigError for a name that no tool has.

    Logs a WARNING instead for a pattern, or while a source that may have the tool is out of reach.
    """
    rules = list(table.tables("policy"))
    for owner, key, name in (
        *((table, "tools", name) for name in table.strings("tools", "names or patterns")),
        *((rule, "tool", rule.string("tool")) for rule in rules),
    ):
        is_pattern = any(character in name for character in "*?[")
        if name.strip("*") == "" or any(fnmatchcase(tool, name) for tool in toolbox.names):
            continue
        if not is_pattern and toolbox.is_complete:
            near = difflib.get_close_matches(name, toolbox.names, n=1)
            suggestion = (
                f"did you mean {near[0]}?" if near else f"the tools are {', '.join(sorted(toolbox.names)[:20])}."
            )
            owner.refuse(key, f"names {name!r:.70}, and no source has such a tool; {suggestion}")
        logger.warning("%s: no tool fits %.70r now; the agent runs without it", owner.place(key), name)


def _base_url(table: "_Table") -> str:
    base_url = table.string("base_url")
    if base_url:
        try:
            check_address(base_url)
        except ValueError as error:
            table.refuse("base_url", f"cannot be: {error}")
    return base_url


def _api_key_env(table: "_Table") -> str:
    name = table.string("api_key_env")
    if name and not _VARIABLE.fullmatch(name):
        table.refuse("api_key_env", "must be the name of an environment variable")
    return name


def _limit_field(table: "_Table") -> str:
    name = table.string("limit_field")
    if name and name not in LIMIT_NAMES:
        table.refuse("limit_field", f"must be {' or '.join(LIMIT_NAMES)}")
    return name


def _omit(table: "_Table") -> tuple[str, ...]:
    names = table.strings("omit", "names of fields of a request")
    for name in names:
        if not _FIELD.fullmatch(name):
            table.refuse("omit", "must be a list of names of fields of a request")
        if name in NEEDED:
            table.refuse("omit", f"cannot have {name}: there is no call without it")
    return names


def _headers(table: "_Table") -> Iterator[tuple[str, str]]:
    names = set[str]()
    for name, value in table.entry.items():
        if not isinstance(value, str) or len(value) > MAX_CHARACTERS["base_url"]:
            table.refuse(name, "must be a string")
        try:
            check_header(name, value)
        except ValueError as error:
            table.refuse(name, f"cannot be: {error}")
        if name.lower() in names:
            table.refuse(name, "is there twice")
        names.add(name.lower())
        yield name, value


def _extra_body(table: "_Table") -> str:
    extra = table.table("extra_body")
    for name in extra.entry:
        if name in _OWN_KEYS:
            extra.refuse(name, f"cannot be set here: set the agent's {_OWN_KEYS[name]}")
        if name in NEEDED or name == "n":
            extra.refuse(name, "cannot be set: the service sets it")
    try:
        text = json.dumps(extra.entry, allow_nan=False, ensure_ascii=False, sort_keys=True) if extra.entry else ""
        orjson.dumps(extra.entry)  # refuses a whole number beyond 64 bits, which it would read as another one
    except (TypeError, ValueError):
        table.refuse("extra_body", "holds a date, a time or a number that JSON cannot hold")
    if len(text.encode()) > MAX_EXTRA_BODY:
        table.refuse("extra_body", f"has more than {MAX_EXTRA_BODY:,} bytes")
    return text


def _rule(table: "_Table") -> PolicyRule:
    table.check_keys({"tool", "action", "ttl"})
    tool, action = table.string("tool"), table.string("action")
    actions = [action.value.lower() for action in PolicyAction]
    if not tool:
        table.refuse("tool", "is missing: a rule needs the name of a tool, or a pattern")
    if action not in actions:
        table.refuse("action", f"must be one of {', '.join(actions)}")
    ttl = {"ttl": table.duration("ttl")} if "ttl" in table.entry else {}
    return PolicyRule(tool=tool, action=PolicyAction(action.upper()), **ttl)


def _limits(table: "_Table") -> AgentLimits:
    table.check_keys(_LIMITS, foreign=_KEYS)
    values: dict[str, Any] = {
        name: table.duration(name) if _LIMITS[name] is timedelta else table.count(name) for name in table.entry
    }
    return AgentLimits(**values)


class _Table:
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

    def check_keys(self, known: Collection[str], *, foreign: Collection[str] = ()) -> None:
        """Raises AgentConfigError if the table has a key that is not known.

        `foreign`: the keys of [[agent]] if the table is its limits, and the other way round.
        """
        for key in self.entry:
            if key not in known:
                name = key.lower().replace("-", "_")
                near = difflib.get_close_matches(name, known, n=1)
                suggestion = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(sorted(known))}."
                if name in foreign:
                    suggestion = f"{name} belongs to {'[agent.limits]' if name in _LIMITS else '[[agent]]'}."
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

    def table(self, key: str) -> "_Table":
        """Returns a table inside this one; an empty one if it is not there."""
        return _Table(self._file, self.entry.get(key, {}), keys=(*self._keys, key), label=f"{self.label}, {key}")

    def tables(self, key: str) -> "Iterator[_Table]":
        """Yields the tables of a list of tables."""
        value = self.entry.get(key, [])
        if not isinstance(value, list):
            self.refuse(key, f"must be a list: write [[agent.{key}]]")
        if len(value) > MAX_ITEMS:
            self.refuse(key, f"can have {MAX_ITEMS:,} items")
        for number, item in enumerate(value):
            yield _Table(self._file, item, keys=(*self._keys, key, number), label=f"{self.label}, {key} {number + 1}")
