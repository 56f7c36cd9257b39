"""A plain loop that prints each piece: what a terminal shows is the message, whatever was withdrawn before."""

import asyncio
import fcntl
import os
import pty
import struct
import sys
import termios

import pyte
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from turnkeeper_client import screen as client_screen
from turnkeeper_client.screen import ANEW, Screen, place, taken_back, width_of
from turnkeeper_client_testing.events import completed, delta, ended, message_response, started, superseded
from turnkeeper_client_testing.server import Stage, stage

LINES = 6
LOOP = """
import asyncio, sys
from turnkeeper_client import Client

async def main():
    async with Client(sys.argv[1]) as client:
        async for piece in client.session("s1").stream("Where?").text():
            print(piece, end="", flush=True)
        print()

asyncio.run(main())
"""
SYNC_LOOP = """
import sys
from turnkeeper_client.sync import Client

with Client(sys.argv[1]) as client:
    for piece in client.session("s1").stream("Where?").text():
        print(piece, end="", flush=True)
    print()
"""
WITHDRAWN = (
    "Ein langer Anfang, der über den Rand des Bildschirms läuft: 漢字漢字漢字 und noch ein Stück weiter.\n" * 3 + "Hal"
)
ANSWER = "Zürich 漢字.\n" + "Was steht, gilt. " * 12
TEXTS = st.text(alphabet=st.sampled_from("ab c\né漢\t"), max_size=40)


class Terminal(pyte.HistoryScreen):
    """Wraps a wide character that does not fit at the end of a line, as terminals do and pyte does not."""

    def draw(self, data: str) -> None:
        for character in data:
            if self.cursor.x == self.columns - 1 and width_of(character) == 2:
                self.cursor.x = self.columns
            super().draw(character)


def rendered(columns: int, *printed: str) -> list[str]:
    """Returns all lines of a terminal, those that have left its screen too, without empty ones at the end."""
    screen = Terminal(columns, LINES, history=1000)
    screen.set_mode(pyte.modes.LNM)  # as a terminal's driver does, a newline begins at the left
    stream = pyte.Stream(screen)
    for text in printed:
        stream.feed(text)
    left = ["".join(line[column].data for column in range(columns)).rstrip() for line in screen.history.top]
    lines = [*left, *(line.rstrip() for line in screen.display)]
    while lines and not lines[-1]:
        lines.pop()
    return lines


@settings(deadline=None)
@example(parts=[("a\nccacc", False, True), ("\nxy", False, True), ("\nz", True, True)], columns=5)
@given(
    parts=st.lists(st.tuples(TEXTS, st.booleans(), st.booleans()), min_size=1, max_size=6),
    columns=st.integers(2, 20),
)
def test_what_counts_is_on_the_screen_and_nothing_else(parts: list[tuple[str, bool, bool]], columns: int) -> None:
    """Each part is the text of a piece, whether it restarts its message, and whether it begins another one."""
    printed: list[str] = []
    screen, message = Screen(), 0
    kept, current = "", ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_screen, "terminal_size", lambda: (columns, LINES))
        for text, restart, another in parts:
            if restart and message:
                current = ""
            elif another or not message:
                message, kept, current = message + 1, kept + current, ""
            current += text
            shown = screen.added(text, f"m{message}", restart=restart and bool(message) and len(printed) > 0)
            if shown.startswith(ANEW):  # it had left the screen
                printed, kept, current = [], "", text
                shown = shown.removeprefix(ANEW)
            printed.append(shown)
    assert rendered(columns, *printed) == rendered(columns, kept + current)


def test_the_cursor_s_place_is_known_or_not_certain() -> None:
    assert place("", 10) == (0, 0, 0)
    assert place("a" * 10, 10) == (0, 10, 0)
    assert place("a" * 11, 10) == (1, 1, 10)
    assert place("a" * 9 + "漢", 10) == (1, 2, 9)
    assert place("\ne\u0301", 10) == (1, 1, 1)
    assert taken_back("a" * 12 + "b\nc", 12, 12, 5) == "\x1b[2A\r\x1b[J" + "a" * 12
    for uncertain in ("a\x1b[2J", "\U0001f468\u200d\U0001f469", "\u2764\ufe0f", "\U0001f1e9\U0001f1ea", "\r"):
        assert place(uncertain, 10) is None
    assert taken_back("abc", 0, 10, 5) == "\r\x1b[J"
    assert taken_back("> abc", 2, 10, 5) == "\r\x1b[2C\x1b[J"
    assert taken_back("a\n" * 5, 0, 10, 5) is None


def test_what_is_no_terminal_gets_a_line_and_the_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    assert screen.added("Hal\x1b[2J", "m1", restart=False) == "Hal\x1b[2J"
    assert screen.added("Pa", "m2", restart=True) == ANEW + "Pa"
    assert screen.added("ris", "m2", restart=False) == "ris"
    monkeypatch.setattr(client_screen, "terminal_size", lambda: (80, 24))
    assert screen.added("\x1b]52;c;x\x07\u202e", "m3", restart=False) == "\\u001b]52;c;x\\u0007\\u202e"


async def on_terminal(on: Stage, program: str) -> list[str]:
    """Runs a program on a terminal of 80 by 24. Returns the lines that it shows."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, f"127.0.0.1:{on.relay.port}"),
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"},
    )
    os.close(terminal)
    screen = pyte.Screen(80, 24)
    stream = pyte.ByteStream(screen)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def read() -> None:
        try:
            data = os.read(controller, 65_536)
        except OSError:  # the program has ended
            data = b""
        if data:
            stream.feed(data)
        else:
            loop.remove_reader(controller)
            ended.set()

    loop.add_reader(controller, read)
    try:
        async with asyncio.timeout(30):
            await ended.wait()
            assert await process.wait() == 0, screen.display
    finally:
        loop.remove_reader(controller)
        os.close(controller)
        if process.returncode is None:
            process.kill()
            await process.wait()
    return [line.rstrip() for line in screen.display if line.strip()]


@pytest.mark.parametrize("program", [LOOP, SYNC_LOOP])
async def test_a_plain_loop_shows_the_exact_answer_on_a_real_terminal(program: str) -> None:
    deltas = [delta(len(WITHDRAWN[:at].encode()), WITHDRAWN[at : at + 9]) for at in range(0, len(WITHDRAWN), 9)]
    size = len("Zürich".encode())
    second = [
        delta(0, "Zürich", attempt=2, message="m2", restarts=True),
        delta(size, ANSWER[6:], attempt=2, message="m2"),
    ]
    steps = [
        message_response(started(2), *deltas, cursor="c1"),
        message_response(superseded(3, attempt=2), *second, cursor="c2"),
        ended(completed(4, ANSWER, attempt=2, message="m2")),
    ]
    health = health_aio.HealthServicer()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    async with stage(steps, health=health) as on:
        lines = await on_terminal(on, program)
    assert lines == ["Zürich 漢字.", *(part.rstrip() for part in _folded("Was steht, gilt. " * 12))]


def _folded(text: str) -> list[str]:
    return [text[at : at + 80] for at in range(0, len(text), 80)]
