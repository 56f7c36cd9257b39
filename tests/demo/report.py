"""Prints the demo's steps, one line each, and counts the checks; with `-v` it prints each check and each text."""

import asyncio
import contextlib
import os
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.demo.shown import around, shown, words
from turnkeeper.terminal.console import Output
from turnkeeper_client.errors import TurnkeeperError

STEP_TIME = 40.0
_LEAST_WIDTH, _USUAL_WIDTH, _MOST_WIDTH = 40, 80, 120
_LONG_WORD = 12
_OUTPUT = Output(sys.stdout, os.environ)
_WIDTH = max(_LEAST_WIDTH, min(_MOST_WIDTH, _OUTPUT.console.width)) if _OUTPUT.is_terminal else _USUAL_WIDTH


NEXT = (
    ("make demo DEMO_ARGS=-v", "each text and each check of this"),
    ("make run", "the same parts for you, on one screen"),
    (".venv/bin/turnkeeper chat clerk", "talk to them, in a second terminal"),
    ("docs/guide/support-desk.md", "your own tools and agent, in two files"),
    ("make chaos", "the same promises while things break"),
)
"""What a reader may do after the demo: a command or a page, and what it is for."""


class BrokenPromise(Exception):
    """A check failed; the message has the expected value and the one that came."""


class Step:
    """One step as it happens: its actions, its texts and its checks."""

    def __init__(self, title: str, *, verbose: bool) -> None:
        self.checks = 0
        self._verbose = verbose
        self._column = 0
        self._indent = ""
        self._after_space = False
        if verbose:
            _print("")
            _print_wrapped(title, indent="", style="bold")

    def describe(self, text: str) -> None:
        """Prints what happens next."""
        self.end_text()
        if self._verbose:
            _print_wrapped(text, indent="  ")

    def begin_text(self, speaker: str) -> None:
        """Begins a text that follows in parts."""
        self.end_text()
        self._indent = " " * (len(speaker) + 6)
        self._put(f"    {speaker}: ")

    def text(self, text: str) -> None:
        """Prints a part of a text as it arrives."""
        for place, line in enumerate(text.split("\n")):
            if place:
                self._break()
            for word in words(line):
                # A part may end within a word: where the line must break, it breaks after the word before.
                if self._after_space and self._column + max(len(word), _LONG_WORD) > _WIDTH:
                    self._break()
                self._put(word)
                self._after_space = word.endswith(" ")

    def end_text(self) -> None:
        """Ends the text."""
        if self._column:
            self._put("\n")
            self._column = 0

    def check(self, what: str, came: object, *, expected: object, display: str = "") -> None:
        """Raises BrokenPromise unless both are equal. `display` is printed instead of a long value."""
        if came != expected:
            raise BrokenPromise(f"{what}\n    expected: {shown(expected)}\n    came:     {shown(came)}")
        self._passed(f"{what}: {display or shown(came)}")

    def holds(self, what: str, truth: bool, *, came: object) -> None:
        """Raises BrokenPromise unless `truth` is true."""
        if not truth:
            raise BrokenPromise(f"{what}\n    came:     {shown(came)}")
        self._passed(f"{what}: {shown(came)}")

    def same_bytes(self, what: str, came: bytes, *, expected: bytes) -> None:
        """Raises BrokenPromise, with the first byte that differs, unless both are the same."""
        if came != expected:
            where = next(
                (at for at, pair in enumerate(zip(came, expected, strict=False)) if pair[0] != pair[1]),
                min(len(came), len(expected)),
            )
            raise BrokenPromise(
                f"{what}: they differ from byte {where} on"
                f"\n    expected: {around(expected, where)} ({len(expected)} bytes in all)"
                f"\n    came:     {around(came, where)} ({len(came)} bytes in all)"
            )
        self._passed(f"{what}: {len(came)} of {len(expected)} bytes are the same")

    def _passed(self, text: str) -> None:
        self.end_text()
        self.checks += 1
        if self._verbose:
            _print_wrapped(text, indent="        ", first="    ok  ", style="green")

    def _break(self) -> None:
        self._put("\n")
        self._put(self._indent)
        self._column = len(self._indent)

    def _put(self, text: str) -> None:
        if self._verbose:
            self._column += len(text)
            _OUTPUT.show(text, end="")
            sys.stdout.flush()


class Report:
    """Prints the steps, and counts those that passed."""

    def __init__(self, total: int, *, verbose: bool) -> None:
        self.passed = 0
        self._checks = 0
        self._verbose = verbose
        self._total = total
        self._start = time.monotonic()

    def describe(self, text: str) -> None:
        """Prints a paragraph after an empty line."""
        _print("")
        _print_wrapped(text, indent="")

    def part(self, name: str, description: str) -> None:
        """Prints what one part of the demo is."""
        _print_wrapped(description, indent=" " * 18, first=f"  {name:16}")

    @asynccontextmanager
    async def step(self, title: str) -> AsyncIterator[Step]:
        """Runs a step. A failure is printed, and the next step can begin."""
        step = Step(title, verbose=self._verbose)
        start = time.monotonic()
        try:
            with (
                contextlib.nullcontext() if self._verbose or not _OUTPUT.is_terminal else _OUTPUT.console.status(title)
            ):
                async with asyncio.timeout(STEP_TIME):
                    yield step
        except Exception as error:  # noqa: BLE001 - a step may fail in any way, and the others shall still run
            step.end_text()
            _OUTPUT.show(("FAILED", "bold red"), f" {title}\n  FAILED: {_explained(error)}")
            return
        finally:
            step.end_text()
            self._checks += step.checks
        self.passed += 1
        figures = f"{step.checks:2} checks {time.monotonic() - start:4.1f} s"
        room = max(0, _WIDTH - len(figures) - 5)
        line = title if len(title) <= room else title[: max(0, room - 1)] + "…"
        _OUTPUT.show(("ok", "bold green"), f"  {line:<{room}} ", (figures, "dim"))

    def end(self) -> int:
        """Prints the result, and what to do next. Returns the exit status."""
        seconds = time.monotonic() - self._start
        all_passed = self.passed == self._total
        result = f"demo: {self.passed} of {self._total} steps passed"
        _print("")
        _OUTPUT.show(
            (result, "bold green" if all_passed else "bold red"), f", {self._checks} checks in {seconds:.1f} s"
        )
        _print("")
        for command, text in NEXT:
            _print_wrapped(text, indent=" " * 34, first=f"{command:<34}")
        return 0 if all_passed else 1


def _print(text: str, style: str = "") -> None:
    _OUTPUT.show((text, style))


def _print_wrapped(text: str, *, indent: str, first: str = "", style: str = "") -> None:
    """Prints a text in lines of at most _WIDTH columns; words longer than a line stay whole."""
    _print(
        textwrap.fill(
            text,
            _WIDTH,
            initial_indent=first or indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        ),
        style,
    )


def _explained(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case BrokenPromise():
            return str(error)
        case TimeoutError():
            return f"the step took more than {STEP_TIME:.0f} s"
        case TurnkeeperError():
            return f"the call failed: {error}"
    return f"{type(error).__name__}: {error}"
