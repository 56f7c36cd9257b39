"""The words of the code and of its prose: the glossary's in identifiers, plain English in sentences."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.unit.house import prose
from tests.unit.house.prose import ROOT, everything, sentences, sources

MOST_WORDS = 35

OLD_WORDS = frozenset(
    [
        "alarms",
        "collector",
        "deaf",
        "draft",
        "elsewhere",
        "flight",
        "follower",
        "groundwork",
        "hearing",
        "hint",
        "hints",
        "journal",
        "knob",
        "knobs",
        "laws",
        "lifeline",
        "nudge",
        "piece",
        "pieces",
        "sharing",
        "sleeper",
        "speak",
        "speech",
        "stray",
        "strays",
        "taker",
        "verdict",
        "warm",
        "woken",
        "workshop",
    ]
)
"""Words of identifiers that the glossary replaced: none is a part of a name."""

OLD_NAMES = frozenset(
    [
        "ask",
        "asked",
        "each",
        "fire",
        "found",
        "heard",
        "made",
        "nobody",
        "ALL_FREE",
        "ring",
        "said",
        "say",
        "see_off",
        "seen",
        "speaks",
        "stand_in",
        "tell",
        "told",
        "wanted",
        "world",
    ]
)
"""Whole names that name no thing: the noun, or the glossary's verb, stands in their place."""

PUBLISHED: frozenset[str] = frozenset(
    [
        "Collector",  # OpenTelemetry's word for the process that receives telemetry
        "collector",
        "test_a_collector_gets_spans_and_metrics",
        "test_a_collector_that_does_not_answer_costs_nothing_but_its_data",
        "test_i3_every_write_waits_for_a_majority_and_its_journal",  # MongoDB's journal
        "TextPiece",  # what the Python client's `text()` yields; programs import it
    ]
)
"""Names that are stored or published, and stay."""

PHRASES = (
    r"\bwhoever\b",
    r"\bnobody\b",
    r"\bsomebody\b",
    r"\beverybody\b",
    r"\bonce that is so\b",
    r"\bhears\b",
    r"\b(is|are) told\b",
    r"\blives\b",
    r"\bsays?\b",
    r"\bits like\b",
    r"\bfor himself\b",
    r"^it is time to\b",
    r"(?<!there )\b(is|are) no (?!longer\b)",
    r"\b(has|have) (the|an|another|it) [^.]*\b(looked up|read again)\b",
    r"\bon the way out\b",
    r"\bletting go\b",
    r"\bwhat came of\b",
    r"\ba (key|module|line|row) a \w+",
    r"^`\w+(\.\w+)?`\.$",
)
"""What prose does not say, each with its plain word in the guide to contributing."""


def test_no_identifier_has_an_old_word() -> None:
    old = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in sources("service", "clients/python", "tests")
        for name, line in defined(path)
        if name not in PUBLISHED and (name in OLD_NAMES or OLD_WORDS & set(words_of(name)))
    ]
    assert not old, "\n".join(old)


def test_prose_has_no_private_phrase() -> None:
    patterns = [re.compile(phrase, re.IGNORECASE) for phrase in PHRASES]
    private = [
        f"{place}: {match[0]}"
        for place, text in everything()
        for pattern in patterns
        if (match := pattern.search(text))
    ]
    assert not private, "\n".join(private)


def test_no_test_speaks_of_people_without_a_part() -> None:
    """Names, prose and data: who acts is a caller, a replica, a reader or an operator."""
    vague = re.compile(r"(?<![a-z])(whoever|nobody|somebody)(?![a-z])", re.IGNORECASE)
    lines = [
        f"{path.relative_to(ROOT)}:{number} {match[0]}"
        for path in sources("tests")
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (match := vague.search(line))
    ]
    assert not lines, "\n".join(lines)


def test_no_sentence_is_longer_than_a_reader_s_breath() -> None:
    long = [
        f"{place}: {len(sentence.split())} words: {sentence[:80]}"
        for place, text in everything()
        for sentence in sentences(text)
        if len(sentence.split()) > MOST_WORDS
    ]
    assert not long, "\n".join(long)


def test_the_readers_of_prose_see_it() -> None:
    """Guards the tests above against passing because they read nothing."""
    texts = [text for _, text in everything()]
    assert len(texts) > 2000
    assert list(sentences("One. Two words; three words here:\n- an item\n| a | b c |")) == [
        *("One.", "Two words; three words here:", "- an item", "a", "b c"),
    ]
    assert next(prose.of_module(Path(__file__))).text.startswith("The words of the code")


def defined(path: Path) -> Iterator[tuple[str, int]]:
    """Yields the names that a module gives to its own things, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.arg(arg=name):
                yield name, node.lineno
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.alias(asname=str(name)):
                yield name, node.lineno


def words_of(name: str) -> list[str]:
    """Returns the words of an identifier in lower case."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)]
