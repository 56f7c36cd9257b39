"""Reads agents from a TOML file. The format is published in docs/reference/agents.md."""

import difflib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import orjson

from turnkeeper import toml_file
from turnkeeper.agents_policy import rule_of
from turnkeeper.agents_table import MAX_CHARACTERS, MAX_ITEMS, AgentsTable
from turnkeeper.domain.agent import Agent, AgentLimits
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
        table = AgentsTable(file, entry, keys=("agent", number), label=f"agent {number + 1}")
        agent = _agent(table, default_model=default_model)
        if toolbox is not None:
            _check_tools(table, agent, toolbox)
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
    AgentsTable(file, file.values, label="the file").check_keys({"agent"})
    entries = file.values.get("agent", [])
    if not isinstance(entries, list) or not entries:
        raise AgentConfigError(f"{file.place('agent')}: the file has no [[agent]].")
    if len(entries) > MAX_ITEMS:
        raise AgentConfigError(f"{file.place('agent', MAX_ITEMS)}: a file can have {MAX_ITEMS:,} agents.")
    return entries


def _agent(table: AgentsTable, *, default_model: str) -> Agent:
    name = table.entry.get("name", "")
    is_name = isinstance(name, str) and _NAME.fullmatch(name) is not None
    if is_name:
        table.label += f" ({name})"
    table.check_keys(_KEYS, foreign=dict.fromkeys(_LIMITS, "[agent.limits]"))
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
        policy=tuple(rule_of(rule) for rule in table.tables("policy")),
        limits=_limits(table.table("limits")),
        max_concurrent_turns=table.count("max_concurrent_turns") if "max_concurrent_turns" in table.entry else 0,
    )


def _check_tools(table: AgentsTable, agent: Agent, toolbox: Toolbox) -> None:
    """Raises AgentConfigError for a name that no tool has, or that the agent may not use by the catalogue.

    Logs a WARNING instead for a pattern, or while a source that may have the tool is out of reach.
    """
    rules = list(table.tables("policy"))
    for owner, key, name in (
        *((table, "tools", name) for name in table.strings("tools", "names or patterns")),
        *((rule, "tool", rule.string("tool")) for rule in rules),
    ):
        is_pattern = any(character in name for character in "*?[")
        if reason := "" if is_pattern else toolbox.catalogue.refusal(name, agent=agent.name):
            owner.refuse(key, f"names {name!r:.70}, {reason}")
        if name.strip("*") == "" or any(fnmatchcase(tool, name) for tool in toolbox.names):
            continue
        if not is_pattern and toolbox.is_complete:
            near = difflib.get_close_matches(name, toolbox.names, n=1)
            suggestion = (
                f"did you mean {near[0]}?" if near else f"the tools are {', '.join(sorted(toolbox.names)[:20])}."
            )
            owner.refuse(key, f"names {name!r:.70}, and no source has such a tool; {suggestion}")
        logger.warning("%s: no tool fits %.70r now; the agent runs without it", owner.place(key), name)


def _base_url(table: AgentsTable) -> str:
    base_url = table.string("base_url")
    if base_url:
        try:
            check_address(base_url)
        except ValueError as error:
            table.refuse("base_url", f"cannot be: {error}")
    return base_url


def _api_key_env(table: AgentsTable) -> str:
    name = table.string("api_key_env")
    if name and not _VARIABLE.fullmatch(name):
        table.refuse("api_key_env", "must be the name of an environment variable")
    return name


def _limit_field(table: AgentsTable) -> str:
    name = table.string("limit_field")
    if name and name not in LIMIT_NAMES:
        table.refuse("limit_field", f"must be {' or '.join(LIMIT_NAMES)}")
    return name


def _omit(table: AgentsTable) -> tuple[str, ...]:
    names = table.strings("omit", "names of fields of a request")
    for name in names:
        if not _FIELD.fullmatch(name):
            table.refuse("omit", "must be a list of names of fields of a request")
        if name in NEEDED:
            table.refuse("omit", f"cannot have {name}: there is no call without it")
    return names


def _headers(table: AgentsTable) -> Iterator[tuple[str, str]]:
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


def _extra_body(table: AgentsTable) -> str:
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


def _limits(table: AgentsTable) -> AgentLimits:
    table.check_keys(_LIMITS, foreign=dict.fromkeys(_KEYS, "[[agent]]"))
    values: dict[str, Any] = {
        name: table.duration(name) if _LIMITS[name] is timedelta else table.count(name) for name in table.entry
    }
    return AgentLimits(**values)
