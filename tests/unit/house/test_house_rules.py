"""Rules that hold for the whole house: sizes, names that stand once, paths that exist."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.unit.house.prose import ROOT, documents, sources

MOST_LINES = 400
SERVICE = "service/turnkeeper"
FOLDERS = ("service", "clients", "tests", "protos", "docs", "deploy", "examples", ".ci")
ROOMS = ("domain", "engine", "model", "rpc", "store", "supervision", "telemetry", "tools")
"""Folders of the service that documents name without the way to them."""
PATH = re.compile(rf"`((?:{'|'.join(map(re.escape, FOLDERS + ROOMS))})/[\w./*{{}}<>,-]*)`")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


def test_no_module_has_more_than_400_lines() -> None:
    sizes = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in sources("service", "clients/python", "tests", "protos", "docs")
    }
    assert not {name: lines for name, lines in sizes.items() if lines > MOST_LINES}
    assert len(sizes) > 400


def test_a_class_name_stands_once() -> None:
    modules: dict[str, list[str]] = defaultdict(list)
    for path in sources(SERVICE):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                modules[node.name].append(str(path.relative_to(ROOT)))
    assert len(modules) > 500
    assert not {name: places for name, places in modules.items() if len(places) > 1}


def test_every_module_and_room_has_a_docstring_of_its_own() -> None:
    docstrings: dict[str, list[str]] = defaultdict(list)
    for path in sources(SERVICE):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        docstrings[docstring or "none"].append(str(path.relative_to(ROOT)))
    assert "none" not in docstrings
    assert not {text: paths for text, paths in docstrings.items() if len(paths) > 1}
    assert not [paths for text, paths in docstrings.items() if text.startswith(("To be said", "Carried from"))]


@pytest.mark.parametrize("page", documents(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_a_document_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {pattern for path in PATH.findall(text) for pattern in _spelled_out(path)}
    missing = [path for path in sorted(named) if not (_exists(ROOT / path) or _exists(ROOT / SERVICE / path))]
    missing += [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    assert not missing


def _spelled_out(path: str) -> list[str]:
    """Returns every path that `a/{b,c}/d` stands for, with `<any>` as a pattern."""
    path = re.sub(r"<\w+>", "*", path)
    if (braces := re.search(r"\{([^}]*)\}", path)) is None:
        return [path]
    return [path.replace(braces[0], choice.strip(), 1) for choice in braces[1].split(",")]


def _exists(path: Path) -> bool:
    """Returns True for a file or folder, and for a pattern that matches one."""
    if "*" in path.name:
        return any(path.parent.glob(path.name))
    return path.exists()
