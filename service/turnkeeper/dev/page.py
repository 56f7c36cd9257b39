"""The first screen of `turnkeeper dev`: all of it is visible at once, also with long names on a small terminal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.policy import usual_ruling
from turnkeeper.domain.tool import PolicyAction, ToolSpec
from turnkeeper.terminal.console import Part
from turnkeeper.terminal.reader_shell import command
from turnkeeper.visible_text import visible

Line = tuple[Part, ...]
WORDS: Final[Mapping[PolicyAction, tuple[str, str]]] = {
    PolicyAction.AUTO: ("runs", "green"),
    PolicyAction.NOTIFY: ("notifies", "green"),
    PolicyAction.APPROVE: ("asks", "yellow"),
    PolicyAction.DENY: ("denied", "red"),
}
"""What the policy does with a tool, as the screen has it, and its colour."""
LEAST_LABEL: Final = 9
MOST_LABEL: Final = 18
"""Columns of the names on the left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the screen shows."""

    address: str
    agents: Sequence[tuple[Agent, Sequence[ToolSpec]]]
    model: str
    data: str
    identity: str
    notes: Sequence[str] = ()


def lines(facts: Facts, *, width: int, height: int) -> list[Line]:
    """Returns the lines of the screen: at most `height - 1` of `width` columns each.

    Only the commands may be longer than a line, because a part of one is of no use; they count as what they take.
    """
    head: Line = (("Turnkeeper", "bold"), f" serves on {facts.address}; Ctrl-C ends it, and all is kept")
    about, tries = [*_facts(facts)], [*_tries(facts)]
    taken = 1 + len(about) + sum(-(-_length(line) // width) for line in tries)
    label = min(MOST_LABEL, max(LEAST_LABEL, *(2 + len(agent.name) for agent, _ in facts.agents)))
    agents = _agents(facts, label=label, width=width, room=max(1, height - 1 - taken))
    return [*(_cut(line, width) for line in (head, *agents, *about)), *tries]


def _facts(facts: Facts) -> Iterator[Line]:
    yield ("",)
    yield _labelled("model", facts.model)
    yield _labelled("data", facts.data)
    if facts.identity == "none":
        yield _labelled("identity", "none: who asks and who approves are the same principal, `default`")
    for note in facts.notes:
        yield _labelled("note", note)


def _tries(facts: Facts) -> Iterator[Line]:
    names = [agent.name for agent, tools in facts.agents if any(_asks(agent, tool) for tool in tools)]
    agent = (names or [facts.agents[0][0].name])[0]
    for number, text in enumerate((f"chat {agent}", "approvals --watch", "sessions")):
        yield ((f"{'' if number else 'try':<{LEAST_LABEL}}", "dim"), (command(text, address=facts.address), "bold"))


def _agents(facts: Facts, *, label: int, width: int, room: int) -> Iterator[Line]:
    """Yields the lines of the agents: each has its part of the room, and all that do not fit are counted."""
    shown = facts.agents
    if len(shown) > room:
        shown = shown[: max(0, room - 1)]
    spare = room - (len(shown) < len(facts.agents))
    for place, (agent, tools) in enumerate(shown):
        own = max(1, spare // (len(shown) - place))
        block = list(_agent(agent, tools, label=label, width=width))
        if len(block) > own:
            hidden = len(tools) - sum(count for _, count in block[: own - 1])
            rest = f"… and {hidden} more: {command('tools', address=facts.address)}"
            block = [*block[: own - 1], (("", rest), 0)]
        for row, (line, _) in enumerate(block):
            spare -= 1
            name = f"{_short(agent.name, label - 2):<{label}}" if not row else " " * label
            yield ((name, "bold cyan"), *line[1:])
    if len(shown) < len(facts.agents):
        more = len(facts.agents) - len(shown)
        yield ((f"… and {more} more agents: {command('agents', address=facts.address)}", "dim"),)


def _agent(agent: Agent, tools: Sequence[ToolSpec], *, label: int, width: int) -> Iterator[tuple[Line, int]]:
    """Yields the lines of one agent, without its name, each with the number of tools in it."""
    if not tools:
        yield (("", ("has no tools", "dim")), 0)
    for action, (word, style) in WORDS.items():
        names = [visible(tool.name) for tool in tools if usual_ruling(agent.policy, tool).action is action]
        first = True
        while names:
            taken, text = 0, ""
            while taken < len(names) and (not text or len(text) + len(names[taken]) + 2 <= width - label - 10):
                text += (", " if text else "") + names[taken]
                taken += 1
            names = names[taken:]
            yield (("", (f"{word if first else '':<9}", style), text + ("," if names else "")), taken)
            first = False


def _asks(agent: Agent, tool: ToolSpec) -> bool:
    return usual_ruling(agent.policy, tool).action is PolicyAction.APPROVE


def _labelled(label: str, text: str) -> Line:
    return ((f"{label:<{LEAST_LABEL}}", "dim"), text)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _length(line: Line) -> int:
    return sum(len(part if isinstance(part, str) else part[0]) for part in line)


def _cut(line: Line, width: int) -> Line:
    """Returns the line with what stands beyond the width cut off."""
    parts: list[Part] = []
    for part in line:
        text, style = (part, "") if isinstance(part, str) else part
        text = visible(text)
        if len(text) > width:
            parts.append((text[: max(0, width - 1)] + "…", style))
            break
        parts.append((text, style))
        width -= len(text)
    return tuple(parts)
