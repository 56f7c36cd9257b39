"""A chat on a terminal: reads what a person types, shows turns as they run, and asks about calls in place."""

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Final

from turnkeeper.terminal import typing_line
from turnkeeper.terminal.console import Output
from turnkeeper.terminal.exit_codes import ExitCode
from turnkeeper.terminal.failures import explained
from turnkeeper.terminal.markdown import markdown_lines
from turnkeeper.terminal.names import short
from turnkeeper.terminal.painting import Painting
from turnkeeper.terminal.turn_view import TurnView
from turnkeeper_client import Client, Session, TurnState, text_of
from turnkeeper_client.errors import SessionError, TransportError
from turnkeeper_client.pb.v1.chat_pb2 import Turn
from turnkeeper_client.pb.v1.message_pb2 import ROLE_USER, Message

HELP: Final = """\
/decide   ask again about the call that waits
/retry    try the last turn again, after it failed or was cancelled
/cancel   cancel the turn that waits; a message may take its place, too
/fork     go on in a copy of this session
/quit     leave; the session stays: turnkeeper chat --session {session}
//TEXT    send /TEXT as a message
Ctrl-C cancels a turn that runs; a second Ctrl-C leaves."""
BEFORE: Final = 4
"""Messages of a session that are shown when a chat goes on with it."""


class ChatView:
    """One chat."""

    def __init__(self, output: Output, client: Client, session: Session) -> None:
        self._output = output
        self._client = client
        self._session = session
        self._status = ExitCode.OK
        self._typed: deque[str | None] = deque()
        """Lines that were typed before the first prompt; None is Ctrl-D."""
        self._interrupted = False
        """True after Ctrl-C has cancelled a turn: the next one leaves."""
        self._commands: Mapping[str, Callable[[], Awaitable[None]]] = {
            "/decide": self._decide,
            "/retry": self._retry,
            "/cancel": self._cancel,
            "/fork": self._fork,
            "/help": self._help,
        }

    async def run(self, *, goes_on: bool) -> ExitCode:
        """Talks until the person leaves. Returns FAILED if the last turn failed."""
        self._typed = deque(typing_line.typed_before())
        state = await self._session.get()
        self._note(f"session {short(self._session.id)} with {state.agent}; /help lists what you can do, /quit leaves")
        if goes_on:
            await self._show_before()
        while (line := self._read()) is not None:
            with self._errors():
                await self._take(line.strip())
        self._note(f"turnkeeper chat --session {short(self._session.id)} goes on")
        return self._status

    def _read(self) -> str | None:
        """Returns what the person types; None if that is the end. Raises KeyboardInterrupt at the second Ctrl-C."""
        interrupted, self._interrupted = self._interrupted, False
        while True:
            try:
                line = self._next_line()
            except KeyboardInterrupt:
                self._output.show()
                if interrupted:
                    raise
                interrupted = True
                self._note("Ctrl-C again leaves")
                continue
            except EOFError:
                self._output.show()
                return None
            if line.strip() in ("/quit", "/exit"):
                return None
            if line.strip():
                return line

    def _next_line(self) -> str:
        """Returns the next line. Raises EOFError at Ctrl-D, and KeyboardInterrupt at Ctrl-C."""
        if not self._typed:
            return typing_line.read("> ")
        line = self._typed.popleft()
        if line is None:
            raise EOFError
        self._output.show("> ", line)
        return line

    async def _take(self, line: str) -> None:
        """Does what a line asks for."""
        if line.startswith("/") and not line.startswith("//"):
            action = self._commands.get(line)
            if action is None:
                self._note(
                    f"there is no {line.split(maxsplit=1)[0]}; /help lists what there is, //… sends it as a message"
                )
            else:
                await action()
            return
        await self._show(self._view().show_sent(line.removeprefix("/") if line.startswith("//") else line))

    async def _show(self, turn: Awaitable[Turn | None]) -> None:
        """Waits until a turn is shown, and keeps how it ended."""
        shown = await turn
        if shown is not None:
            is_failed = shown.state == TurnState.TURN_STATE_FAILED
            self._interrupted = shown.state == TurnState.TURN_STATE_CANCELLED
            self._status = ExitCode.FAILED if is_failed else ExitCode.OK
            if is_failed:
                self._note("/retry tries it again")

    def _view(self) -> TurnView:
        return TurnView(self._output, self._client, self._session)

    async def _decide(self) -> None:
        turn = await self._last()
        if turn is None or not any(item.approval_id for item in turn.pending):
            self._note("nothing waits for a decision")
            return
        await self._show(self._view().show_waiting(turn, await self._last_event_of(turn)))

    async def _retry(self) -> None:
        turn = await self._last()
        if turn is None:
            self._note("there is no turn to retry yet")
            return
        last = await self._last_event_of(turn)
        turn = await self._session.retry(turn.turn_id)
        await self._show(self._view().show_from(turn.turn_id, last))

    async def _cancel(self) -> None:
        turn = await self._last()
        if turn is None or turn.HasField("end_time"):
            self._note("no turn waits or runs")
            return
        await self._session.cancel(turn.turn_id)
        self._note("cancelled")

    async def _fork(self) -> None:
        self._session = await self._session.fork()
        self._note(f"session {short(self._session.id)}: a copy up to here")

    async def _help(self) -> None:
        self._note(HELP.format(session=short(self._session.id)))

    async def _last_event_of(self, turn: Turn) -> int:
        """Returns the number of the turn's last event."""
        return [event.sequence async for event in self._session.events(turn_id=turn.turn_id)][-1]

    async def _last(self) -> Turn | None:
        """Returns the session's last turn."""
        async for turn in self._session.turns():
            return turn
        return None

    async def _show_before(self) -> None:
        """Shows the last messages of the session, and goes on with a turn that runs or waits."""
        before: list[Message] = []
        async for message in self._session.messages(newest_first=True):
            if text_of(message):
                before.append(message)
            if len(before) == BEFORE:
                break
        for message in reversed(before):
            if message.role == ROLE_USER:
                self._output.show("> ", text_of(message))
            else:
                Painting(self._output).paint(markdown_lines(text_of(message), self._output.console), finished=True)
        turn = await self._last()
        if turn is not None and not turn.HasField("end_time"):
            with self._errors():
                await self._show(self._view().show_from(turn.turn_id, turn.first_sequence))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Shows a refusal of the service, and goes on."""
        try:
            yield
        except (SessionError, TransportError) as error:
            self._output.show((explained(error, "the service")[0], "red"))

    def _note(self, text: str) -> None:
        self._output.show((text, "dim"))
