"""The front of the command line: help, mistakes, and what a server does not load."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import pytest
import typer

from turnkeeper.command_line import SERVER_COMMANDS, main
from turnkeeper.terminal.app import MODULES, SERVE, app, load
from turnkeeper.terminal.exit_codes import ExitCode

NOT_FOR_SERVERS = ("turnkeeper.terminal", "turnkeeper_client", "typer", "rich", "pygments", "markdown_it")
START = """
import sys
from turnkeeper.command_line import main
assert main(["serve", "--agents", "nowhere.toml", "--mongodb-uri", "mongodb://127.0.0.1:1/"]) == 2
assert "turnkeeper.app" in sys.modules
print([name for name in sys.modules if name.split(".")[0] in {names} or name in {names}], file=sys.stderr)
"""
WIDTH = 78
"""Columns of a help page's text on a terminal of 80."""


def test_a_server_loads_nothing_of_the_terminal() -> None:
    program = START.replace("{names}", repr(NOT_FOR_SERVERS))
    variables = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_API_KEY": "unused"}
    run = subprocess.run([sys.executable, "-c", program], env=variables, check=False, capture_output=True, text=True)
    assert run.stderr.endswith("\n[]\n"), run.stdout + run.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_alone_it_shows_every_command_and_examples(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    names = [name for name, _ in SERVER_COMMANDS] + [str(command.name) for command in app.registered_commands]
    assert len(names) > 5
    assert not [name for name in names if f" {name} " not in shown]
    assert "Examples:" in shown
    assert not [code for code in ExitCode if f"{code.value} " not in shown.partition("Exit status")[2]]
    assert "\x1b" not in shown


def _paths(group: Any, *above: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if command.rich_help_panel != SERVE:
            yield (*above, name)
            yield from _paths(command, *above, name) if hasattr(command, "commands") else ()


load()


@pytest.mark.parametrize("path", [*_paths(typer.main.get_command(app))], ids=" ".join)
def test_a_help_page_fills_its_lines(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*path, "--help"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.partition("╭─")[0].splitlines()]
    assert lines[1].startswith("Usage: ")
    assert len(lines) > 3
    early = [
        line for line, following in pairwise(lines) if following and len(f"{line} {following.split()[0]}") <= WIDTH
    ]
    assert not [line for line in early if line]


def test_the_version_is_that_of_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["turnkeeper"] == version("turnkeeper")
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith(f"turnkeeper {version('turnkeeper')}\nturnkeeper-client ")
    assert len(app.registered_commands) >= len(MODULES)
