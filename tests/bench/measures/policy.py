"""Measures what the rules of a policy cost for one call, in this process."""

import json
import time
from typing import Final

from tests.bench.bench import Bench, Measure
from tests.bench.figures import Row, row
from turnkeeper.domain.policy import PolicyRule
from turnkeeper.domain.tool import PolicyAction, ToolClass, ToolSpec
from turnkeeper.policy.policies import CallFacts, Policy

RULES: Final = 100
BYTES: Final = 500
CALLS: Final = 1_000
FEW_CALLS: Final = 100
CONDITION: Final = "args.cents > {limit} && args.order.startsWith('Z')"


async def policy(bench: Bench) -> list[Row]:
    """Measures a call that passes 99 conditions by, each of its tool, and is decided by the last rule."""
    deny = [
        PolicyRule(tool="refund", action=PolicyAction.DENY, when=CONDITION.format(limit=n)) for n in range(RULES - 1)
    ]
    rules = Policy([*deny, PolicyRule(tool="*", action=PolicyAction.AUTO)])
    arguments = {"cents": 10_000, "order": "A-17", "note": ""}
    arguments["note"] = "x" * (BYTES - len(json.dumps(arguments)))
    call = CallFacts(
        spec=ToolSpec(
            name="refund", description="", schema_json="{}", tool_class=ToolClass.IRREVERSIBLE, source="python"
        ),
        arguments_json=json.dumps(arguments),
        tenant="acme",
        principal="ada",
        labels={"team": "blue"},
        untrusted=False,
    )
    calls = FEW_CALLS if bench.scale.quick else CALLS
    costs = [_microseconds(rules, call, calls) for _ in range(bench.scale.rounds)]
    about = f"CPU of {RULES} rules with conditions on a call with {BYTES} bytes of arguments"
    return [row("policy.call", about, costs, unit="us")]


def _microseconds(rules: Policy, call: CallFacts, calls: int) -> float:
    start = time.thread_time()
    for _ in range(calls):
        rules.ruling_on(call)
    return 1e6 * (time.thread_time() - start) / calls


MEASURES = (Measure("policy", "what the rules of a policy cost for a call", policy),)
