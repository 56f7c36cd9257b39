"""Shows one turn of a chat until it ends: its events, questions in place where it waits, and what Ctrl-C asks for."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Final

from turnkeeper.terminal.answering import ENDS, Answering
from turnkeeper.terminal.console import Output
from turnkeeper.terminal.deciding import ask_about
from turnkeeper.terminal.failures import CommandFailed
from turnkeeper.terminal.interruption import Interruption
from turnkeeper.terminal.names import in_one_line
from turnkeeper.terminal.question import ask_one_of
from turnkeeper_client import Client, EventStream, Session, TurnState
from turnkeeper_client.errors import Aborted, SessionError
from turnkeeper_client.pb.v1.chat_pb2 import IF_BUSY_WITHDRAW_PENDING, Turn
from turnkeeper_client.pb.v1.event_pb2 import Event

Events = AsyncGenerator[Event, None]
WAITING: Final = frozenset(
    {
        TurnState.TURN_STATE_AWAITING_APPROVAL,
        TurnState.TURN_STATE_AWAITING_OUTCOME,
        TurnState.TURN_STATE_AWAITING_TOOL,
        TurnState.TURN_STATE_AWAITING_BUDGET,
    }
)
TICK: Final = 1.0
"""Seconds after which the screen is looked at if no event comes."""
_MAY_WAIT: Final = frozenset({"approval_requested", "client_tool_requested", "budget_reached"})


class TurnView:
    """One turn on the screen."""

    def __init__(self, output: Output, client: Client, session: Session) -> None:
        self._output = output
        self._client = client
        self._session = session
        self._stream: EventStream | None = None

    async def show_sent(self, text: str) -> Turn | None:
        """Sends a message, and shows its turn. Returns the turn as it is in the end; None if it was not accepted.

        If a turn waits for approvals, asks whether the message takes its place. Returns None if the person refuses.
        """
        try:
            return await self._show(self._events_of(self._session.stream(text)))
        except Aborted as error:
            waiting = await self._replaceable(error)
            if waiting is None:
                raise
            if not await self._is_to_be_replaced(waiting):
                return None
        return await self._show(self._events_of(self._session.stream(text, if_busy=IF_BUSY_WITHDRAW_PENDING)))

    async def show_from(self, turn_id: str, after: int) -> Turn | None:
        """Shows a turn from the event behind this number on."""
        return await self._show(self._events(turn_id, after))

    async def show_waiting(self, turn: Turn, after: int) -> Turn | None:
        """Asks about what a turn waits for, then shows it from the event behind this number on."""
        return await self._show(self._events(turn.turn_id, after)) if await self._is_decided(turn) else turn

    async def _show(self, events: Events) -> Turn | None:
        answering = Answering(self._output)
        while True:
            with Interruption() as interruption:
                await self._show_events(answering, events, interruption)
            if not answering.turn_id:
                return None
            turn = await self._session.turn(answering.turn_id)
            if turn.state not in WAITING or not await self._is_decided(turn):
                return turn
            events = self._events(turn.turn_id, answering.last_sequence)

    async def _show_events(self, answering: Answering, events: Events, interruption: Interruption) -> None:
        """Shows the events. The first Ctrl-C cancels the turn, a second one raises KeyboardInterrupt."""
        cancellation = _Cancellation(self._session, answering, interruption)
        answering.begin()
        try:
            between = interruption.between(events, longest=lambda: min(answering.stale_for or TICK, TICK))
            async with contextlib.aclosing(between) as stream:
                async for event in stream:
                    answering.show(event, away=self._stream.away_for if self._stream else timedelta())
                    cancellation.go_on()
        except SessionError:
            if not answering.state:  # else the failure of the turn is on the screen
                raise
        finally:
            answering.rest()
            await cancellation.ended()

    async def _is_decided(self, turn: Turn) -> bool:
        """Asks about what the turn waits for. Returns False if the person decides nothing, or cannot."""
        approvals = [await self._client.approvals.get(item.approval_id) for item in turn.pending if item.approval_id]
        if approvals:
            try:
                with Interruption(hides_typing=False) as interruption:
                    if await interruption.is_done(ask_about(self._output, self._client, approvals)):
                        return True
                self._output.show()
            except CommandFailed as error:
                self._output.show((str(error), "dim"))
        again = "/decide asks again, " if approvals else ""
        self._output.show((f"the turn waits; {again}/cancel ends it", "dim"))
        return False

    async def _replaceable(self, error: Aborted) -> Turn | None:
        """Returns the turn for which a message was refused if it waits for approvals alone, otherwise None."""
        if error.reason != "TURN_IN_PROGRESS":
            return None
        turn = await self._session.turn(error.metadata["turn_id"])
        waits = turn.state == TurnState.TURN_STATE_AWAITING_APPROVAL and all(item.approval_id for item in turn.pending)
        return turn if waits else None

    async def _is_to_be_replaced(self, turn: Turn) -> bool:
        """Asks whether a message takes the place of a turn that waits. Returns False at Ctrl-C, or the end of input."""
        tools = ", ".join(in_one_line(item.tool) for item in turn.pending)
        self._output.show((f"The turn before waits for a decision on {tools}.", "bold"))
        answers: list[str] = []

        async def read_answer() -> None:
            question = "Withdraw the question, and send the message in its place? (y/n):"
            answers.append((await ask_one_of(self._output, question, ("yes", "no")))[0])

        try:
            with Interruption(hides_typing=False) as interruption:
                if not await interruption.is_done(read_answer()):
                    self._output.show()
        except CommandFailed as error:
            self._output.show((str(error), "dim"))
        if answers != ["yes"]:
            self._output.show(
                ("the message was not sent; the turn waits: /decide asks about it, /cancel ends it", "dim")
            )
        return answers == ["yes"]

    async def _events(self, turn_id: str, after: int) -> Events:
        """Yields the turn's events behind this number, until it ends or waits."""
        stream = self._session.follow(after=after, turn_id=turn_id)
        async with contextlib.aclosing(self._events_of(stream)) as events:
            async for event in events:
                yield event
                kind = event.WhichOneof("payload")
                if kind in ENDS or (kind in _MAY_WAIT and (await self._session.turn(turn_id)).state in WAITING):
                    return

    async def _events_of(self, stream: EventStream) -> Events:
        """Yields the events of a stream, which is the one on the screen from now on."""
        self._stream = stream
        async with contextlib.aclosing(aiter(stream)) as events:
            async for event in events:
                yield event


class _Cancellation:
    """Cancels the turn on the screen once Ctrl-C was pressed, and the turn is known."""

    def __init__(self, session: Session, answering: Answering, interruption: Interruption) -> None:
        self._session = session
        self._answering = answering
        self._interruption = interruption
        self._is_noted = False
        self._call: asyncio.Task[Turn] | None = None

    def go_on(self) -> None:
        """Does what is to be done now."""
        if self._interruption.count and not self._is_noted:
            self._is_noted = True
            self._answering.note("cancelling; Ctrl-C again leaves")
        if self._is_noted and self._call is None and self._answering.turn_id:
            self._call = asyncio.create_task(self._session.cancel(self._answering.turn_id))

    async def ended(self) -> None:
        """Waits for the end of the call. Gives it up after a second Ctrl-C."""
        if self._call is not None:
            if self._interruption.count > 1:
                self._call.cancel()
            await asyncio.gather(self._call, return_exceptions=True)
