"""A chat without a terminal: each line of the input is a message, and what is printed is the answers."""

import asyncio
import sys

from turnkeeper.terminal.absence import absence_shown
from turnkeeper.terminal.command import Terminal
from turnkeeper.terminal.exit_codes import ExitCode
from turnkeeper.terminal.failures import CommandFailed
from turnkeeper_client import Session, text_of
from turnkeeper_client.errors import SessionError
from turnkeeper_client.pb.v1.chat_pb2 import TURN_STATE_CANCELLED, Turn


async def talk(terminal: Terminal, session: Session) -> ExitCode:
    """Sends line after line. Ends at the first turn that fails, or that waits for a person."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        if text := line.strip():
            status = await _send(terminal, session, text)
            if status is not ExitCode.OK:
                return status
    return ExitCode.OK


async def _send(terminal: Terminal, session: Session, text: str) -> ExitCode:
    stream = session.stream(text, previews=False)
    try:
        async with absence_shown(stream, terminal.errors):
            async for message in stream.messages():
                if (answer := text_of(message)) and not terminal.json:
                    terminal.output.show(answer)
    except SessionError as error:
        if not error.turn_id:
            raise
        terminal.errors.show(("the turn failed: ", "red"), error.message)
        return ExitCode.FAILED
    turn = stream.turn
    if turn is None:
        raise CommandFailed("the stream ended without its turn")
    if terminal.json:
        terminal.output.show_json(turn, one_line=True)
    if turn.pending:
        _show_pending(terminal, turn)
        return ExitCode.WAITS
    return ExitCode.FAILED if turn.state == TURN_STATE_CANCELLED else ExitCode.OK


def _show_pending(terminal: Terminal, turn: Turn) -> None:
    """Prints what the turn waits for, and how to decide. This command never decides."""
    for item in turn.pending:
        if item.approval_id and not terminal.json:
            terminal.output.show(f"waits for a decision: {terminal.shell(f'approve {item.approval_id}')}")
        elif not item.approval_id:
            terminal.errors.show(f"the turn waits; {terminal.shell(f'show {turn.session_id}')} tells for what")
