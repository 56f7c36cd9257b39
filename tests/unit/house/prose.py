"""The project's prose: docstrings, log lines, documents and comments of protos, each with the line it begins at."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
LOGGING = frozenset({"debug", "info", "warning", "error", "exception", "critical", "log"})
PARAGRAPH = re.compile(r"\n\s*\n|\n(?=\s*[-*] |\s*\d+\. |\s*\||\s*#|\s*```)")
END_OF_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]*`]*\s+")


class Prose(NamedTuple):
    """One piece of prose and the place where it begins, as `file:line`."""

    place: str
    text: str


def sources(*folders: str) -> list[Path]:
    """Returns our own Python modules below these folders of the repository, generated code left out."""
    return sorted(
        path for folder in folders for path in (ROOT / folder).rglob("*.py") if not {"pb", "build"} & set(path.parts)
    )


def documents() -> list[Path]:
    """Returns every page in Markdown."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("clients/*/README.md"))]


def of_module(path: Path) -> Iterator[Prose]:
    """Yields the docstrings of a module, also those below fields and constants, and the texts that it logs."""
    name = path.relative_to(ROOT)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield Prose(f"{name}:{node.lineno}", node.value.value)
        elif isinstance(node, ast.Call) and (text := _logged(node)) is not None:
            yield Prose(f"{name}:{node.lineno}", text)


def of_document(path: Path) -> Iterator[Prose]:
    """Yields the paragraphs of a page without its blocks of code."""
    name = path.relative_to(ROOT)
    text = re.sub(r"```.*?```", lambda block: "\n" * block[0].count("\n"), path.read_text(encoding="utf-8"), flags=re.S)
    line = 1
    for paragraph in re.split(r"(\n\s*\n)", text):
        if paragraph.strip():
            yield Prose(f"{name}:{line}", paragraph)
        line += paragraph.count("\n")


def of_proto(path: Path) -> Iterator[Prose]:
    """Yields the comments of a proto: lines of comment that follow each other are one text."""
    name = path.relative_to(ROOT)
    lines: list[str] = []
    first = 0
    for number, line in enumerate([*path.read_text(encoding="utf-8").splitlines(), ""], 1):
        if (comment := re.match(r"\s*// ?(.*)", line)) is not None:
            first = first or number
            lines.append(comment[1])
        elif lines:
            yield Prose(f"{name}:{first}", "\n".join(lines))
            lines, first = [], 0


@cache
def everything() -> tuple[Prose, ...]:
    """Returns all prose of the service, the Python client, the documents and the protos."""
    modules = (text for path in sources("service", "clients/python") for text in of_module(path))
    pages = (text for path in documents() for text in of_document(path))
    protos = (text for path in sorted((ROOT / "protos").rglob("*.proto")) for text in of_proto(path))
    return (*modules, *pages, *protos)


def sentences(text: str) -> Iterator[str]:
    """Yields the sentences of a text; cells of a table and items of a list are sentences of their own."""
    for paragraph in PARAGRAPH.split(text):
        cells = paragraph.split("|") if paragraph.lstrip().startswith("|") else paragraph.split(" · ")
        for cell in cells:
            for sentence in END_OF_SENTENCE.split(cell):
                if words := " ".join(sentence.split()):
                    yield words


def _logged(call: ast.Call) -> str | None:
    if not (isinstance(call.func, ast.Attribute) and call.func.attr in LOGGING and call.args):
        return None
    text = call.args[1] if call.func.attr == "log" and len(call.args) > 1 else call.args[0]
    if isinstance(call.func.value, ast.Name) and call.func.value.id == "logger" and isinstance(text, ast.Constant):
        return str(text.value)
    return None
