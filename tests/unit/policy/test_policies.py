"""What rules decide on a call: names first, then conditions; what cannot be read never lets a call run."""

import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.builders import AGENT
from turnkeeper.domain.approvers import Approvers
from turnkeeper.domain.policy import PolicyRule, Ruling, ShadowRuling
from turnkeeper.domain.tool import PolicyAction, ToolClass, ToolSpec
from turnkeeper.policy.policies import MAX_NODES, CallFacts, Policies, Policy

AUTO, NOTIFY, APPROVE, DENY = PolicyAction
SPEC = ToolSpec(
    name="refund", description="", schema_json="{}", tool_class=ToolClass.IRREVERSIBLE, source="python:desk"
)


def facts(arguments: object = None, spec: ToolSpec = SPEC, *, untrusted: bool = False, **labels: str) -> CallFacts:
    return CallFacts(
        spec=spec,
        arguments_json=json.dumps({} if arguments is None else arguments),
        tenant="acme",
        principal="ada",
        labels=labels,
        untrusted=untrusted,
    )


def a_rule(action: PolicyAction, when: str = "", **given: Any) -> PolicyRule:
    return PolicyRule(**{"tool": "*", "action": action, "when": when, **given})


def decided(call: CallFacts, *rules: PolicyRule) -> Ruling:
    return Policy(rules).ruling_on(call)


def test_the_first_rule_counts_whose_name_class_and_condition_fit() -> None:
    rules = (
        a_rule(DENY, tool="send_*"),
        a_rule(DENY, tool_class=ToolClass.READ_ONLY),
        a_rule(DENY, "args.cents > 10000"),
        a_rule(
            APPROVE, "args.cents > 500", name="large", note="Look.", approvers=Approvers(k=2), ttl=timedelta(days=1)
        ),
        a_rule(AUTO),
    )
    assert decided(facts({"cents": 20_000}), *rules).action is DENY
    large = decided(facts({"cents": 600}), *rules)
    assert (large.action, large.rule, large.note, large.approvers.k) == (APPROVE, "large", "Look.", 2)
    assert (large.ttl, large.rule_text) == (
        timedelta(days=1),
        'tool = "*", when = "args.cents > 500", action = "approve", ttl = "1d", k = 2',
    )
    assert decided(facts({"cents": 5}), *rules).action is AUTO
    assert decided(facts({}, replace(SPEC, name="send_mail")), *rules).action is DENY
    assert decided(facts({}, replace(SPEC, tool_class=ToolClass.READ_ONLY)), *rules).action is DENY


def test_without_a_rule_only_reading_is_free() -> None:
    assert decided(facts()).action is APPROVE
    assert decided(facts(spec=replace(SPEC, tool_class=ToolClass.IDEMPOTENT))).action is APPROVE
    assert decided(facts(spec=replace(SPEC, tool_class=ToolClass.READ_ONLY))).action is AUTO
    assert decided(facts(spec=replace(SPEC, tool_class=ToolClass.READ_ONLY, asks=True))).action is APPROVE


ERRORS: list[tuple[str, object, str]] = [
    ("args.cents > 5", {}, "missing"),
    ("args.list[3] == 1", {"list": []}, "missing"),
    ("labels.team == 'x'", {}, "missing"),
    ("args.cents > 'x'", {"cents": 5}, "wrong_type"),
    ("1 / args.zero == 1", {"zero": 0}, "arithmetic"),
    ("args.cents", {"cents": 5}, "not_boolean"),
    ("args.note == 'x'", {"note": "\ud800"}, "unreadable"),
    ("true", [0] * MAX_NODES, "too_large"),
    ("int(args.note) == 1", {"note": "x"}, "failed"),
]


@pytest.mark.parametrize(("when", "arguments", "kind"), ERRORS, ids=[f"{kind} {when}" for when, _, kind in ERRORS])
@pytest.mark.parametrize(("action", "then"), [(AUTO, APPROVE), (NOTIFY, APPROVE), (APPROVE, APPROVE), (DENY, DENY)])
def test_a_condition_that_cannot_be_read_denies_or_asks_and_never_lets_run(
    when: str, arguments: object, kind: str, action: PolicyAction, then: PolicyAction
) -> None:
    ruling = decided(facts(arguments), a_rule(action, when, name="first"), a_rule(AUTO, name="second"))
    assert (ruling.action, ruling.rule, ruling.error) == (then, "first", kind)
    assert ruling.rule_text.endswith(f"; its condition cannot be read: {kind}")


def test_names_are_matched_first_so_that_a_rule_of_another_tool_reads_nothing() -> None:
    ruling = decided(facts([0] * 9000), a_rule(DENY, "args.x == 1", tool="other"), a_rule(AUTO))
    assert (ruling.action, ruling.error) == (AUTO, "")


def test_what_conditions_can_read() -> None:
    when = "tool == 'refund' && principal == 'ada' && tenant == 'acme' && labels.team == 'blue' && 'fin' in groups"
    policies = Policies(
        {AGENT.name: replace(AGENT, policy=(a_rule(AUTO, f"{when} && !untrusted"), a_rule(DENY)))},
        groups_of=lambda tenant, principal: frozenset({"fin"} if (tenant, principal) == ("acme", "ada") else ()),
    )
    assert policies.ruling_on(AGENT, facts(team="blue")).action is AUTO
    assert policies.ruling_on(AGENT, facts(team="red")).action is DENY
    assert policies.ruling_on(AGENT, replace(facts(team="blue"), principal="eve")).action is DENY
    assert policies.ruling_on(AGENT, facts(team="blue", untrusted=True)).action is DENY


def test_an_irreversible_call_after_an_untrusted_result_asks_unless_the_rule_takes_it() -> None:
    ruling = decided(facts(untrusted=True), a_rule(AUTO))
    assert (ruling.action, ruling.rule_text) == (
        APPROVE,
        'tool = "*", action = "auto", ttl = "1h"; the model has read what an untrusted tool returned',
    )
    assert decided(facts(untrusted=True), a_rule(AUTO, even_untrusted=True)).action is AUTO
    assert decided(facts(untrusted=True), a_rule(DENY)).action is DENY
    idempotent = replace(SPEC, tool_class=ToolClass.IDEMPOTENT)
    assert decided(facts(spec=idempotent, untrusted=True), a_rule(AUTO)).action is AUTO


def test_shadow_rules_record_and_decide_nothing() -> None:
    rules = (
        a_rule(DENY, "args.cents > 5", name="strict", shadow=True),
        a_rule(AUTO, "args.other == 1", name="odd", shadow=True),
        a_rule(DENY, "args.cents > 50", name="far", shadow=True),
        a_rule(NOTIFY, name="real"),
        a_rule(DENY, name="never reached", shadow=True),
    )
    ruling = decided(facts({"cents": 9}), *rules)
    assert (ruling.action, ruling.rule) == (NOTIFY, "real")
    assert ruling.shadows == (
        ShadowRuling(rule="strict", action=DENY),
        ShadowRuling(rule="odd", action=APPROVE, error="missing"),
    )
    assert ruling.rule_text == decided(facts({"cents": 9}), rules[3]).rule_text, "the hash does not cover shadows"


def test_shadow_rules_take_no_steps_from_rules_that_decide() -> None:
    costly = [rf"args.a.matches(r'^x{number}\w+\d$')" for number in range(12)]
    shadows = [a_rule(DENY, when, name="shadow", shadow=True) for when in costly]
    real = [a_rule(DENY, when) for when in costly[:6]]
    ruling = decided(facts({"a": "b"}), *shadows, *real, a_rule(AUTO, "args.a == 'b'", name="real"))
    assert (ruling.action, ruling.rule, ruling.error) == (AUTO, "real", "")
    assert {shadow.error for shadow in ruling.shadows} == {"too_large"}, "what is left is too little for all of them"


def test_rules_are_those_of_the_newest_file_whatever_version_a_session_pinned() -> None:
    configured = {AGENT.name: replace(AGENT, policy=(a_rule(AUTO),))}
    pinned = replace(AGENT, policy=(a_rule(APPROVE),), instructions="Older.")
    policies = Policies(configured)
    assert policies.ruling_on(pinned, facts()).action is AUTO
    configured[AGENT.name] = replace(AGENT, policy=(a_rule(DENY),))
    assert policies.ruling_on(pinned, facts()).action is DENY
    del configured[AGENT.name]
    assert policies.ruling_on(pinned, facts()).action is APPROVE, "an agent that is gone keeps its own rules"


def test_conditions_over_ten_thousand_argument_documents_never_raise_and_take_no_20_ms() -> None:
    """By the thread's CPU time: an evaluation holds the interpreter's lock, so that it would stop the event loop."""
    texts = (
        "args.a > 5",
        "args.a.exists(x, x == 'b') || args.b.all(x, x > 3)",
        "has(args.a) && size(args.a) > 3 && args.b[0] == args.a",
        "args.a.matches('^[a-z]+$') && args.b.startsWith('x')",
        "args == args && int(args.a) + args.b / args.c > 5",
    )
    policy = Policy([a_rule(random.Random(7).choice([AUTO, NOTIFY]), text) for text in texts for _ in range(20)])
    rng, slowest, kinds = random.Random(15), 0.0, set[str]()
    for _ in range(10_000):
        call = replace(facts(), arguments_json=json.dumps(_document(rng)))
        spent, ruling = _timed(policy, call)
        if spent > slowest:  # beside other programs a thread is slower: the best of four counts
            slowest = max(slowest, min(spent, *(_timed(policy, call)[0] for _ in range(3))))
        assert ruling.action in (AUTO, NOTIFY, APPROVE)
        assert not (ruling.error and ruling.runs)
        kinds.add(ruling.error)
    assert slowest < 0.020
    assert {"missing", "wrong_type", "too_large", ""} <= kinds


def _timed(policy: Policy, call: CallFacts) -> tuple[float, Ruling]:
    start = time.thread_time()
    ruling = policy.ruling_on(call)
    return time.thread_time() - start, ruling


def test_many_patterns_are_counted_though_the_arguments_are_small() -> None:
    policy = Policy([a_rule(DENY, rf"args.a.matches(r'^x{number}\w+\d$')") for number in range(100)])
    timed = [_timed(policy, facts({"a": "b"})) for _ in range(4)]
    assert min(spent for spent, _ in timed) < 0.020
    assert {(ruling.action, ruling.error) for _, ruling in timed} == {(DENY, "too_large")}


def test_a_number_beyond_64_bits_is_compared_and_one_beyond_floats_cannot_be_read() -> None:
    for action in (AUTO, DENY):
        policy = Policy([a_rule(action, "args.c > 5"), a_rule(APPROVE)])
        assert policy.ruling_on(facts({"c": 2**200})).action is action
        assert policy.ruling_on(facts({"c": -(2**200)})) == replace(a_rule(APPROVE).ruling)
        assert policy.ruling_on(facts({"c": 10**400})).error == "unreadable"


def test_a_condition_that_only_another_version_takes_fails_where_it_is_read() -> None:
    stored = replace(AGENT, policy=(a_rule(AUTO, "args.a.later()"),))
    ruling = Policies({}).ruling_on(stored, facts({"a": 1}))
    assert (ruling.action, ruling.error) == (APPROVE, "unreadable")


def _document(rng: random.Random) -> object:
    return {name: _value(rng, 0) for name in "abc" if rng.random() < 0.8}


def _value(rng: random.Random, depth: int) -> object:
    kinds: list[Callable[[], object]] = [
        lambda: rng.choice([0, -1, 7, 2**31, 2**63 - 1, 2**63, 2**200, -(2**63), 1.5, -0.0, 1e308]),
        lambda: rng.choice(["", "b", "x", "\x00", "\ud800", "é" * 10, "a" * rng.choice([1, 1_000, 60_000])]),
        lambda: rng.choice([True, False, None]),
        lambda: [rng.choice(["b", 4, None])] * rng.choice([0, 3, 300, 1_990, 5_000]),
        lambda: [_value(rng, depth + 1) for _ in range(rng.randrange(5))] if depth < 6 else [],
        lambda: {rng.choice("abc"): _value(rng, depth + 1) for _ in range(rng.randrange(4))} if depth < 6 else {},
    ]
    return rng.choice(kinds)()


def test_one_hundred_rules_over_500_bytes_take_little() -> None:
    """The figure is `make bench`'s; here is only that it is of that order, by CPU time, the best of ten."""
    rules = [a_rule(DENY, f"args.cents > {10_000 + number} && args.order.startsWith('Z')") for number in range(99)]
    policy = Policy([*rules, a_rule(AUTO)])
    call = facts({"cents": 5, "order": "A-17", "note": "x" * 460})
    assert 480 <= len(call.arguments_json) <= 520
    spent = []
    for _ in range(10):
        start = time.thread_time()
        assert policy.ruling_on(call).action is AUTO
        spent.append(time.thread_time() - start)
    assert min(spent) < 0.000_5
