"""The model's script for the trials, and the conversation in which each point is met."""

from dataclasses import dataclass

from turnkeeper import faults

LETTER = (
    "{label} 1: the quick brown fox, le renard brûlé, 狐, jumps over the lazy dog; nothing of this may come twice, "
    "and nothing may be missing, not even the last stop 🗝."
)
"""Slow enough for a lease to be renewed while it is streamed; characters of one to four bytes."""

SCRIPT = r"""
[[reply]]
match = '^act (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
match = '^both (?P<label>\S+)'
after_tools = 0
tool_calls = [
    { name = "act", arguments = { label = "{label}-1" } },
    { name = "act", arguments = { label = "{label}-2" } },
]

[[reply]]
match = '^both (?P<label>\S+)'
text = "both are done"

[[reply]]
match = '^say (?P<label>\S+)'
after_tools = 0
chunk = 4
delay = "40ms"
text = "I shall act, as announced here."
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
match = '^wait .*'
first_delay = "60s"
text = "Never said."

[[reply]]
match = '^late .*'
after_tools = 0
tool_calls = [{ name = "hold_irreversible", arguments = { label = "late" } }]

[[reply]]
match = '^late .*'
text = "{tool_result}"

[[reply]]
match = '^(act|say) (?P<label>\S+)'
chunk = 4
delay = "40ms"
text = "LETTER"
""".replace("LETTER", LETTER)

AGENTS = """
[[agent]]
name = "auto"
tools = ["act"]
[agent.limits]
tool_timeout = "20s"
[[agent.policy]]
tool = "*"
action = "auto"
ttl = "1h"

[[agent]]
name = "hasty"
tools = ["hold_irreversible"]
[agent.limits]
tool_timeout = "500ms"
[[agent.policy]]
tool = "*"
action = "auto"
ttl = "1h"

[[agent]]
name = "holds"
tools = ["hold_irreversible"]
[agent.limits]
tool_timeout = "1m"
[[agent.policy]]
tool = "*"
action = "auto"

[[agent]]
name = "asks"
tools = ["act"]
[[agent.policy]]
tool = "*"
action = "approve"
ttl = "1h"
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """One trial: the point, the action there, at which passage, and whether the tool needs an approval."""

    point: str
    action: str
    passage: int
    agent: str

    @property
    def armed(self) -> str:
        """The plan as the environment variable has it."""
        return f"{self.point}={self.action}@{self.passage}"


def plans(*, times: int, only: str = "") -> list[Plan]:
    """Returns `times` trials of every point, every other one frozen instead of killed; points take turns.

    Points of every step are met at its first, second … fifth passage: the message, its answer, the tool's start, its
    result, the end. The sweeper's is met once some sweeps have passed, in the middle of the conversation. Points that
    no conversation meets are covered by the tests of forks, of trimming and of purging.
    """
    chosen = [name for name in faults.NAMES if only in name and not name.startswith(("fork.", "trim.", "purge."))]
    return [_plan(name, number) for number in range(times) for name in chosen]


def _plan(name: str, number: int) -> Plan:
    asks = name.startswith(("approval.", "claim.")) or number % 4 >= 2
    passage = 1
    if name.startswith("step."):
        passage += number // 2 % 5
    if name.startswith("sweep."):
        passage = 6 + number % 6
    return Plan(name, "stop" if number % 2 else "kill", passage, "asks" if asks else "auto")
