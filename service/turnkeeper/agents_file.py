"""Reads agents from a TOML file. The format is published in docs/reference/agents.md."""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from turnkeeper import durations
from turnkeeper.domain.agent import Agent, AgentLimits, PolicyRule
from turnkeeper.domain.tool import PolicyAction
from turnkeeper.errors import AgentConfigError

SAMPLES = Path(__file__).with_name("agents.toml")
"""The agents of a server that is started without `--agents`."""
_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_STRINGS = ("model", "instructions", "description", "base_url", "api_key_env")


def load(path: Path, *, default_model: str) -> Mapping[str, Agent]:
    """Returns the file's agents by name. Raises AgentConfigError, which names the file, the agent and the key."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AgentConfigError(f"There is no file {path}; --agents names a TOML file of agents.") from None
    except (OSError, ValueError) as error:
        raise AgentConfigError(f"{path} cannot be read as TOML: {error}") from error
    _check_keys(content, {"agent"}, str(path))
    entries = content.get("agent", [])
    if not isinstance(entries, list) or not entries:
        raise AgentConfigError(f"{path} has no [[agent]].")
    agents: dict[str, Agent] = {}
    for number, entry in enumerate(entries, start=1):
        agent = _agent(entry, where=f"{path}, agent {number}", default_model=default_model)
        if agent.name in agents:
            raise AgentConfigError(f"{path} has two agents named {agent.name}.")
        agents[agent.name] = agent
    return agents


def _agent(entry: Mapping[str, Any], *, where: str, default_model: str) -> Agent:
    _check_keys(entry, {"name", "temperature", "tools", "policy", "limits", *_STRINGS}, where)
    name = entry.get("name", "")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise AgentConfigError(f"{where}: name must match {_NAME.pattern}.")
    where = f"{where} ({name})"
    strings = {key: _string(entry, key, where) for key in _STRINGS}
    strings["model"] = strings["model"] or default_model
    tools = entry.get("tools", [])
    if not isinstance(tools, list) or not all(isinstance(tool, str) for tool in tools):
        raise AgentConfigError(f"{where}: tools must be a list of names or patterns.")
    temperature = entry.get("temperature")
    is_number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if temperature is not None and not (is_number and math.isfinite(temperature)):
        raise AgentConfigError(f"{where}: temperature must be a number.")
    policy = entry.get("policy", [])
    if not isinstance(policy, list):
        raise AgentConfigError(f"{where}: policy must be a list: write [[agent.policy]].")
    return Agent(
        name=name,
        temperature=temperature,
        tools=tuple(tools),
        policy=tuple(_rule(rule, f"{where}, policy {n}") for n, rule in enumerate(policy, start=1)),
        limits=_limits(entry.get("limits", {}), f"{where}, limits"),
        **strings,
    )


def _rule(entry: Mapping[str, Any], where: str) -> PolicyRule:
    _check_keys(entry, {"tool", "action", "ttl"}, where)
    tool = _string(entry, "tool", where)
    action = _string(entry, "action", where)
    actions = [action.value.lower() for action in PolicyAction]
    if not tool or action not in actions:
        raise AgentConfigError(f"{where}: it needs a tool, and one of these actions: {', '.join(actions)}.")
    if "ttl" not in entry:
        return PolicyRule(tool=tool, action=PolicyAction(action.upper()))
    return PolicyRule(tool=tool, action=PolicyAction(action.upper()), ttl=_duration(entry["ttl"], f"{where}: ttl"))


def _limits(entry: Mapping[str, Any], where: str) -> AgentLimits:
    limits = {limit.name: limit for limit in fields(AgentLimits)}
    _check_keys(entry, set(limits), where)
    values: dict[str, Any] = {}
    for name, value in entry.items():
        if limits[name].type is timedelta:
            values[name] = _duration(value, f"{where}: {name}")
            continue
        least = 0 if name == "max_output_tokens" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise AgentConfigError(f"{where}: {name} must be a whole number of at least {least}.")
        values[name] = value
    return AgentLimits(**values)


def _check_keys(entry: object, known: set[str], where: str) -> None:
    """Raises AgentConfigError if the entry is not a table, or has a key that is not known."""
    if not isinstance(entry, Mapping):
        raise AgentConfigError(f"{where}: it must be a table.")
    unknown = set(entry) - known
    if unknown:
        raise AgentConfigError(
            f"{where}: there is no key {', '.join(sorted(unknown))}; the keys are {', '.join(sorted(known))}."
        )


def _string(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key, "")
    if not isinstance(value, str):
        raise AgentConfigError(f"{where}: {key} must be a string.")
    return value


def _duration(value: object, where: str) -> timedelta:
    """Returns the duration. Raises AgentConfigError if the value is not a duration, or is zero."""
    try:
        duration = durations.parse(value) if isinstance(value, str) else timedelta()
    except ValueError:
        duration = timedelta()
    if not duration:
        raise AgentConfigError(f"{where} must be a duration such as {durations.EXAMPLES}.")
    return duration
