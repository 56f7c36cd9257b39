"""What an approver sees: nothing invisible, and words of mixed scripts by name. Sources: UAX #44, UTS #39 section 5."""

import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.rpc.shown_text import MAX_WORD_LENGTH, MAX_WORDS, mixed_script_words
from turnkeeper.visible_text import shown_json, visible

SPACES = [chr(number) for number in range(0x7F, sys.maxunicode + 1) if unicodedata.category(chr(number)) == "Zs"]
DIRECTION_MARKS = [chr(number) for number in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))]
IGNORABLE = [
    chr(number)
    for first, last in (  # DerivedCoreProperties.txt, Default_Ignorable_Code_Point
        (0xAD, 0xAD),
        (0x34F, 0x34F),
        (0x61C, 0x61C),
        (0x115F, 0x1160),
        (0x17B4, 0x17B5),
        (0x180B, 0x180F),
        (0x200B, 0x200F),
        (0x202A, 0x202E),
        (0x2060, 0x206F),
        (0x3164, 0x3164),
        (0xFE00, 0xFE0F),
        (0xFEFF, 0xFEFF),
        (0xFFA0, 0xFFA0),
        (0xFFF0, 0xFFF8),
        (0x1BCA0, 0x1BCA3),
        (0x1D173, 0x1D17A),
        (0xE0000, 0xE0FFF),
    )
    for number in range(first, last + 1)
]
BLANK = ["\u2800", "\U00013441", "\U00013442", "\U00016fe4", "\U0001d159"]


def test_what_cannot_be_seen_is_an_escape() -> None:
    for character in [*SPACES, *DIRECTION_MARKS, *IGNORABLE, *BLANK]:
        shown = shown_json(json.dumps(f"a{character}b", ensure_ascii=False))
        assert shown == json.dumps(f"a{character}b"), f"U+{ord(character):04X}"


@pytest.mark.parametrize(
    "text",
    ["a b", "naïve café", "Привет, \u043c\u0438\u0440", "日本語のテスト", "नमस्ते", "한국어", "שלום", "😀", "x\u0301"],
)
def test_what_can_be_seen_is_shown_as_it_is(text: str) -> None:
    assert shown_json(json.dumps(text, ensure_ascii=False)) == json.dumps(text, ensure_ascii=False)


def test_marks_that_would_cover_the_lines_around_are_escapes() -> None:
    shown = shown_json('"' + "a" + "\u0300" * 4 + "b" + "\u0301\u20dd" * 100 + '"')
    assert shown == '"a' + "\u0300" * 4 + "b" + "\u0301\u20dd" * 2 + "\\u0301\\u20dd" * 98 + '"'


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_what_is_shown_means_the_same(value: object) -> None:
    assert json.loads(shown_json(json.dumps(value, ensure_ascii=False))) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("p\u0430ypal", ["p\u0430ypal"]),  # Cyrillic a
        ("send to p\u0430ypal.com and p\u0430ypal.com", ["p\u0430ypal"]),
        ("\u0391lpha", ["\u0391lpha"]),  # Greek capital alpha
        ("\u0440\u03b1\u0439", ["\u0440\u03b1\u0439"]),  # Cyrillic with Greek
        ("p\u200b\u0430y", ["p\u0430y"]),  # a hidden character does not end a word
        ("p\\u200b\u0430y", ["p\u0430y"]),  # nor its escape
        ("x\u0301\u0430", ["x\u0301\u0430"]),  # nor does a mark
        ("a\u0561", ["a\u0561"]),  # Armenian
        ("hello \u043c\u0438\u0440", []),
        ("hello\\n\u043c\u0438\u0440", []),
        ("hello\u00a0\u043c\u0438\u0440", []),
        ("привет", []),
        ("東京Tokyoタワー", []),
        ("한국어ABC漢字", []),
        ("ㄅㄆ漢字abc", []),
        ("ㄅㄆ한국", ["ㄅㄆ한국"]),  # Bopomofo with Hangul
        ("10€ µm \u211dx", []),
        ("नमस्ते", []),
        ("αβγ-abc", []),
    ],
)
def test_words_of_mixed_scripts_are_named(text: str, words: list[str]) -> None:
    assert mixed_script_words(f'"{text}"') == words


def test_the_words_are_few_and_short() -> None:
    many = " ".join(f"a\u0430{number}" for number in range(100))
    assert mixed_script_words(many) == many.split()[:MAX_WORDS]
    assert mixed_script_words("a\u0430" * 100) == ["a\u0430" * (MAX_WORD_LENGTH // 2)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b]52;c;ZXZpbA==\x07", r"\u001b]52;c;ZXZpbA==\u0007"),
        ("\x1b]8;;http://e\x1b\\x", "\\u001b]8;;http://e\\u001b\\x"),
        ("real\rfake", r"real\u000dfake"),
        ("\x9b2J\x7f\x00", r"\u009b2J\u007f\u0000"),
        ("pay \u202elapyap", r"pay \u202elapyap"),
        ("a\u200bb\u2028c\ufeff", r"a\u200bb\u2028c\ufeff"),
        ("prix : 3\u202f€, 5\u00a0%", "prix : 3\u202f€, 5\u00a0%"),
        ("⚠\ufe0f 1\ufe0f\u20e3 👩\u200d💻 ❤\ufe0f\u200d🔥", "⚠\ufe0f 1\ufe0f\u20e3 👩\u200d💻 ❤\ufe0f\u200d🔥"),
        ("a\ufe0fb\u200dc", r"a\ufe0fb\u200dc"),
        ("naïve Привет 日本語 שלום", "naïve Привет 日本語 שלום"),
    ],
)
def test_what_moves_a_cursor_or_hides_is_shown_on_a_terminal(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text())
def test_no_text_reaches_a_terminal_with_a_control(text: str) -> None:
    assert not {sign for sign in visible(text) if unicodedata.category(sign) in ("Cc", "Zl", "Zp")} - {"\n", "\t"}
    assert not set(visible(text)) & {*DIRECTION_MARKS, "\u200b", "\ufeff"}
