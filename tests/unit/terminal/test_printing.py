"""Nothing reaches the terminal but through one place, and into a pipe goes no escape code."""

import ast
import io
import os
import pty
import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.segment import Segment

from tests.unit.house.prose import ROOT, sources
from turnkeeper.terminal.console import Output, styled
from turnkeeper.terminal.markdown import markdown_lines

CONSOLE = ROOT / "service/turnkeeper/terminal/console.py"
MARKDOWN = ROOT / "service/turnkeeper/terminal/markdown.py"
"""Renders, and prints nothing: what it returns goes through the console."""
PRINTERS = frozenset({"print", "echo", "secho", "write", "writelines", "out", "print_json", "log", "rule", "getch"})
RENDERABLES = re.compile(r"rich\.(?!(?:live|console)\b)\w+")


def printing_calls(path: Path) -> list[str]:
    """Returns the calls of a module that print, and what it imports of rich."""
    calls = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in PRINTERS:
                calls.append(f"{path.name}:{node.lineno}: {name}")
        elif isinstance(node, ast.ImportFrom) and RENDERABLES.match(node.module or "") and path != MARKDOWN:
            calls.append(f"{path.name}:{node.lineno}: {node.module}")
        elif isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr") and path.name != "app.py":
            calls.append(f"{path.name}:{node.lineno}: {node.attr}")
    return calls


def test_nothing_in_the_room_prints_but_the_console() -> None:
    modules = [path for path in sources("service/turnkeeper/terminal") if path != CONSOLE]
    assert len(modules) > 5
    assert not [call for path in modules for call in printing_calls(path)]
    assert printing_calls(CONSOLE)


def test_what_is_shown_is_text_from_any_author() -> None:
    stream = io.StringIO()
    Output(stream, {}).show("[bold]a[/] :smile: ", ("\x1b]52;c;eA==\x07", "red"), "\u202e", end="|")
    assert stream.getvalue() == "[bold]a[/] :smile: \\u001b]52;c;eA==\\u0007\\u202e|"


def test_a_table_shows_all_of_its_cells_as_text() -> None:
    stream = io.StringIO()
    Output(stream, {}).show_table(["NAME", "TEXT"], [["\x1b[2J", ("[red]", "bold")], ["b", "x" * 500]])
    assert "\x1b" not in stream.getvalue()
    assert "\\u001b[2J  [red]" in stream.getvalue()
    assert "x" * 500 in stream.getvalue()


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({"TERM": "xterm-256color"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colour_is_for_terminals_that_have_it(variables: dict[str, str], coloured: bool) -> None:
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        Output(stream, variables).show(("red", "red"))
        stream.flush()
        written = os.read(reader, 1000)
    os.close(reader)
    assert (b"\x1b[31m" in written) == coloured
    assert b"red" in written


def test_styled_text_keeps_its_styles_apart_from_its_words() -> None:
    text = styled(("a", "bold"), "\x1b")
    assert text.plain == "a\\u001b"
    assert [str(span.style) for span in text.spans] == ["bold"]
    assert isinstance(Output(io.StringIO(), {}).console, Console)


def test_lines_that_were_rendered_pass_through_the_same_place() -> None:
    stream = io.StringIO()
    output = Output(stream, {})
    output.rewrite(0, [[Segment("\x1b]8;;x\x07")], [Segment("b")]])
    output.rewrite(0, markdown_lines("**a** \x1b[2J [b](http://c) <i>d</i>", output.console))
    assert stream.getvalue() == "\\u001b]8;;x\\u0007\nb\na \\u001b[2J b (http://c) <i>d</i>\n"


def test_a_table_on_a_narrow_terminal_loses_nothing() -> None:
    stream = io.StringIO()
    output = Output(stream, {})
    output.console.width = 40
    output.show_table(["ID", "NAME", "TEXT"], [["k3f9q2", "n" * 60, "some words that go on and on"]])
    shown = stream.getvalue()
    assert "k3f9q2" in shown
    assert shown.count("n") == 60 + len("on and on") - len("o ad o")
    assert max(len(line) for line in shown.splitlines()) <= 40
