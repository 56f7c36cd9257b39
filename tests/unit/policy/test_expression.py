"""What a condition may say: names, functions and macros whose work is in proportion to the arguments."""

import time

import pytest

from turnkeeper.policy import cel_extension as cel
from turnkeeper.policy.expression import MAX_BYTES, MAX_PATTERN_STEPS, BadExpression, compiled, context
from turnkeeper.policy.pattern_cost import steps_of

VALUES = {
    "args": {"amount": 120, "to": ["ada", "bob"], "note": "hello", "nested": {"deep": [1, 2]}},
    "tool": "refund",
    "principal": "ada",
    "groups": ["finance"],
    "tenant": "acme",
    "labels": {"team": "blue"},
    "untrusted": False,
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("args.amount > 100", True),
        ("args.amount > 100.5 && tool == 'refund'", True),
        ("has(args.amount) && !has(args.other)", True),
        ("args.to.exists(x, x == 'bob')", True),
        ("args.to.all(x, x in ['ada', 'bob']) && args.nested.deep.exists_one(x, x == 2)", True),
        ("'finance' in groups && labels.team == 'blue' && tenant == 'acme'", True),
        ("args.note.matches('^h.*o$')", True),
        ('args.note.startsWith("x") // a comment with \'quotes', False),
        ("args.note == '.exists(x, args.all(y, y))'", False),
        ("args.note == r'\\'", False),
        ("untrusted || principal.size() > 10", False),
        ("size(args.to) == 2 ? true : false", True),
    ],
)
def test_what_a_condition_can_say(text: str, value: bool) -> None:
    assert compiled(text).execute(context(VALUES)) is value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("args.amount >", "is no expression: "),
        ("x" * (MAX_BYTES + 1), "has more than 1,024 bytes"),
        ("amount > 5", "names amount; it can name args, tool, principal"),
        ("args.to.exists(x, y == 1)", "names y; it can name"),
        ("now() > 5", "calls now; it can call all, bool"),
        ("args.to.frob()", "calls frob; it can call"),
        ("args.to.exists(x, args.to.all(y, x == y))", "cannot have args inside the macro exists"),
        ("args.to.exists(x, x.all(y, y == 1))", "cannot have the macro all inside the macro exists"),
        ("args.to.all (x, x . exists (y, true))", "cannot have the macro exists inside the macro all"),
        ("args.to.map(x, x).size() > 1", "cannot call map: use all, exists or exists_one"),
        ("args.to.filter(x, true) == []", "cannot call filter"),
        ("args.to.exists(x, x in groups)", "cannot have groups inside the macro exists"),
        ("args.to.exists(x, x.matches('a'))", "cannot have matches inside the macro exists"),
        ("args.to.exists(args, args == 1)", "cannot use args as the variable of a macro"),
        (" && ".join(["args.to.all(x, true)"] * 5), "can have 4 macros"),
        ("args.note.matches(args.note)", "must write the pattern of matches out"),
        ("matches(args.note, 'a')", "must write the pattern of matches out"),
        ("args.note.matches('a' + args.note)", "must write the pattern of matches out"),
        ("args.note.matches('(')", "has a pattern that cannot be used"),
        ("args.note.matches('\\\\w{40}')", "has a pattern that takes too long"),
        ('args.note == """x"""', "cannot have a text in three quotation marks"),
        ("(" * 300 + "true" + ")" * 300, "is no expression"),
    ],
)
def test_what_is_refused(text: str, problem: str) -> None:
    with pytest.raises(BadExpression) as raised:
        compiled(text)
    assert problem in str(raised.value)


def test_the_costliest_conditions_take_about_as_long_as_their_steps() -> None:
    """A step is about 0.5 µs; by CPU time of this thread, and with room for a slow machine."""
    arguments = {"l": list(range(1990)), "s": "x" * 60_000}
    values = {**VALUES, "args": arguments}
    for text in (
        " && ".join(["args.l.all(x, x >= 0 && x != 777777)"] * 4),
        " || ".join(["args.l[5] > 2000"] * 50),
        " || ".join(["args.s.matches('(x|y)*z')"] * 30),
        " || ".join([r"args.s.matches('\\w+\\d')"] * 30),
    ):
        condition, held = compiled(text), context(values)
        best = min(_seconds(lambda: condition.execute(held)) for _ in range(3))  # noqa: B023 - called at once
        steps = condition.cost.on(nodes=1_992, size=60_000)
        assert best < 4 * steps * 0.5e-6, f"{text[:40]}: {best * 1e6:.0f} µs for {steps} steps"


PATTERNS = (
    *(r"\w", r"\w+\d", r"\w{2}", r"\W{3}", r"(\w|\d)", r"(?:\w{2}){2}", r"[\w.]+@[\w.]+", r"[^\w]{2}", r"\p{L}{2}"),
    *(r"\d{10}", r"\D{10}", r"[^\d]{10}", r"\d{4}-\d{2}-\d{2}", r"\s{10}", r".{10}", r"[^a-z]{50}", r"\bword\b"),
    *("a{1000}", "a" * 900, "((a{10}){10}){10}", "(?i)abcdefgh", "(?is).*drop.*", r"(?i)\p{L}", "[a-zA-Z0-9]{64}"),
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_steps_of_a_pattern_are_about_those_that_compiling_it_takes(pattern: str) -> None:
    """By CPU time of this thread, with room for a slow machine."""
    program = cel.compile(f"''.matches(r'{pattern}')")
    best = min(_seconds(lambda: program.execute(None)) for _ in range(5))
    assert best < 4 * max(steps_of(pattern), 100) * 0.5e-6, f"{best * 1e6:.0f} µs for {steps_of(pattern)} steps"


@pytest.mark.parametrize("pattern", ["[a-zA-Z0-9]{64}", r"\d{4}-\d{2}-\d{2}", r"[\w.]+@[\w.]+", r"\w{2,}", r".{1,100}"])
def test_a_pattern_is_taken_or_refused_by_its_text_alone(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a file of agents that one replica takes is taken by a busy one, too."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(time, "thread_time", lambda: next(ticks))
    compiled.cache_clear()
    assert compiled(f"args.note.matches(r'{pattern}')").cost.steps <= MAX_PATTERN_STEPS


@pytest.mark.parametrize("pattern", ["(((a{999}){999}){999})", r"\w{9}", r"(\w{2}){2}", "x{" + "9" * 900 + "}"])
def test_a_pattern_that_is_much_longer_than_its_text_is_not_even_compiled(pattern: str) -> None:
    with pytest.raises(BadExpression, match="takes too long"):
        compiled(f"args.note.matches(r'{pattern}')")


def _seconds(work: object) -> float:
    assert callable(work)
    start = time.thread_time()
    work()
    return time.thread_time() - start
