"""Lines of a model's Markdown for a terminal. No letter and no digit of it is lost: else it is shown as plain text."""

from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console
from rich.markdown import Markdown
from rich.segment import Segment

from turnkeeper.terminal.console import styled
from turnkeeper.visible_text import visible

Line = list[Segment]
# Nothing is hidden: HTML is text, an image and the target of a reference are the text that they are.
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).disable(["image", "reference"])


def markdown_lines(text: str, console: Console) -> list[Line]:
    """Returns the lines of a text as Markdown, folded at the console's width. Other text stays as it is."""
    shown = visible(text)
    document = Markdown("", hyperlinks=False, code_theme="ansi_dark")
    document.parsed = _PARSER.parse(shown)
    for token in document.parsed:
        _keep_line_ends(token)
    lines = _rendered(document, console)
    return lines if _is_whole(shown, document.parsed, lines) else text_lines(shown, console)


def text_lines(text: str, console: Console) -> list[Line]:
    """Returns the lines of a plain text, folded at the console's width."""
    return _rendered(styled(text), console)


def _rendered(content: object, console: Console) -> list[Line]:
    lines = console.render_lines(content, pad=False)  # type: ignore[arg-type]  # a document or a text
    return [_without_padding(line) for line in lines]


def _without_padding(line: Line) -> Line:
    """Returns the line without spaces at its end, unless they are coloured."""
    line = list(line)
    while line and not (line[-1].style and line[-1].style.bgcolor):
        last = line.pop()
        if text := last.text.rstrip(" "):
            return [*line, Segment(text, last.style)]
    return line


def _keep_line_ends(token: Token) -> None:
    """Makes the end of a line one on the screen, too: a model's line is seldom a part of a longer one."""
    for child in token.children or ():
        if child.type == "softbreak":
            child.type = "hardbreak"


def _is_whole(text: str, tokens: Sequence[Token], lines: Sequence[Line]) -> bool:
    """Returns True if the lines have each letter and digit of the text, in its order; the name of a block's language
    is left out, and a list's numbers are its own.
    """
    for token in tokens:
        if token.type == "fence" and token.info:
            text = text.replace(token.markup + token.info, token.markup, 1)
    shown = "".join(segment.text for line in lines for segment in line)
    return list(filter(str.isalnum, text)) == list(filter(str.isalnum, shown))
