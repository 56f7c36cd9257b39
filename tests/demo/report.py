"""Prints the demo's steps and checks, and counts those that passed. Lines have at most 80 columns."""

import asyncio
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.demo.shown import around, shown, words
from turnkeeper_client.errors import TurnkeeperError

STEP_TIME = 40.0
_WIDTH = 80
_LONG_WORD = 12


class BrokenPromise(Exception):
    """A check failed; the message has the expected value and the one that came."""


class Step:
    """One step as it happens: its actions, its texts and its checks."""

    def __init__(self, number: int, total: int, title: str) -> None:
        self.checks = 0
        self._column = 0
        self._indent = ""
        self._after_space = False
        _print(f"\nStep {number} of {total}: {title}")

    def describe(self, text: str) -> None:
        """Prints what happens next."""
        self.end_text()
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
        _print_wrapped(text, indent="        ", first="    ok  ")

    def _break(self) -> None:
        self._put("\n" + self._indent)
        self._column = len(self._indent)

    def _put(self, text: str) -> None:
        self._column += len(text)
        sys.stdout.write(text)
        sys.stdout.flush()


class Report:
    """Prints the steps, and counts those that passed."""

    def __init__(self, total: int) -> None:
        self.passed = 0
        self._begun = 0
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
        self._begun += 1
        step = Step(self._begun, self._total, title)
        start = time.monotonic()
        try:
            async with asyncio.timeout(STEP_TIME):
                yield step
        except Exception as error:  # noqa: BLE001 - a step may fail in any way, and the others shall still run
            step.end_text()
            _print(f"  FAILED: {_explained(error)}")
            return
        finally:
            step.end_text()
        self.passed += 1
        _print(f"  passed: {step.checks} checks in {time.monotonic() - start:.1f} s")

    def end(self) -> int:
        """Prints the result. Returns the exit status."""
        _print(f"\n{time.monotonic() - self._start:.1f} s in all")
        _print(f"demo: {self.passed} of {self._total} steps passed")
        return 0 if self.passed == self._total else 1


def _print(text: str) -> None:
    print(text, flush=True)


def _print_wrapped(text: str, *, indent: str, first: str = "") -> None:
    """Prints a text in lines of at most _WIDTH columns; words longer than a line stay whole."""
    _print(
        textwrap.fill(
            text,
            _WIDTH,
            initial_indent=first or indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
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
