"""What is painted in place is what counts, whatever was painted before; Markdown loses no letter."""

import io

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from turnkeeper.terminal.console import Output
from turnkeeper.terminal.markdown import markdown_lines, text_lines
from turnkeeper.terminal.painting import ANEW, Painting

COLUMNS, ROWS = 20, 6
TEXTS = st.text(alphabet=st.sampled_from("ab \n漢é*_`#-"), max_size=60)


class Terminal:
    """An output whose bytes a terminal reads."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.output = Output(self.stream, {})
        self.output.console = Console(  # type: ignore[misc]  # of a size of its own
            file=self.stream, force_terminal=True, width=COLUMNS, height=ROWS, color_system=None, highlight=False
        )

    @property
    def lines(self) -> list[str]:
        screen = pyte.HistoryScreen(COLUMNS, ROWS, history=1000)
        screen.set_mode(pyte.modes.LNM)
        pyte.Stream(screen).feed(self.stream.getvalue())
        left = ["".join(line[column].data for column in range(COLUMNS)).rstrip() for line in screen.history.top]
        lines = [*left, *(line.rstrip() for line in screen.display)]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def shown(text: str) -> list[str]:
    """Returns the lines of a terminal on which the text alone was painted."""
    terminal = Terminal()
    terminal.output.rewrite(0, markdown_lines(text, terminal.output.console))
    return terminal.lines


@settings(deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
def test_the_last_text_is_on_the_screen_and_nothing_else(texts: list[str]) -> None:
    terminal = Terminal()
    painting = Painting(terminal.output)
    for number, text in enumerate(texts, start=1):
        painting.paint(markdown_lines(text, terminal.output.console), finished=number == len(texts))
    lines, expected = terminal.lines, shown(texts[-1])
    if ANEW[:19] in lines:  # the text before had left the screen
        lines = lines[len(lines) - len(expected) :]
    assert lines == expected


@pytest.mark.parametrize("count", range(1, 2 * ROWS))
def test_lines_are_replaced_if_all_of_them_are_on_the_screen(count: int) -> None:
    terminal = Terminal()
    painting = Painting(terminal.output)
    for name in ("a", "b"):
        text = "\n".join(f"{name}{number}" for number in range(count))
        painting.paint(text_lines(text, terminal.output.console), finished=name == "b")
    replaced = [f"b{number}" for number in range(count)]
    if count < ROWS:
        assert terminal.lines == replaced
    else:
        before = [f"a{number}" for number in range(count)]
        assert terminal.lines == [*before, "(the answer begins", "anew)", *replaced]


def test_what_grows_beyond_the_screen_is_painted_once() -> None:
    terminal = Terminal()
    painting = Painting(terminal.output)
    text = "\n\n".join(f"line {number}" for number in range(40))
    for size in range(0, len(text), 3):
        painting.paint(text_lines(text[:size], terminal.output.console))
    painting.paint(text_lines(text, terminal.output.console), finished=True)
    assert [line for line in terminal.lines if line] == [f"line {number}" for number in range(40)]


@pytest.mark.parametrize(
    "text",
    [
        "a <b>c</b> &lt;d&gt;",
        "![picture](http://x/y.png)",
        "[name]: http://hidden.example\n\ntext",
        "one\ntwo\nthree",
        "| a | b |\n|---|---|\n| 1 | " + "long " * 20 + "|",
        "3. c\n1. a\n7. x",
        "```python\nprint(1)\n```",
        "    indented\n# Title\n\n> quote\n\n---\n- [ ] x",
        "\\u001b[2J",
    ],
)
def test_markdown_loses_no_letter_and_no_digit(text: str) -> None:
    kept = "".join(filter(str.isalnum, text.replace("```python", "")))
    rendered = "".join(filter(str.isalnum, "".join(shown(text))))
    assert rendered == kept
