"""The commands `turnkeeper show` and `turnkeeper export`."""

import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from enum import StrEnum
from typing import Annotated

import typer

from turnkeeper.terminal import story
from turnkeeper.terminal.absence import absence_shown
from turnkeeper.terminal.app import USE
from turnkeeper.terminal.command import Terminal, command
from turnkeeper.terminal.console import Output
from turnkeeper.terminal.lookup import find_session
from turnkeeper.terminal.names import day, short, word
from turnkeeper.terminal.sessions import SESSION
from turnkeeper_client import Client, ResumePolicy
from turnkeeper_client.calls import call
from turnkeeper_client.pb.v1 import session_pb2
from turnkeeper_client.pb.v1.event_pb2 import Event

PATIENT = ResumePolicy(patience=timedelta(days=1))
"""A server may be away for long: Ctrl-C ends a command that follows."""
_PAGE = 100


class Format(StrEnum):
    """How a session is exported."""

    JSONL = "jsonl"
    MD = "md"


@command("show", panel=USE, examples=("show k3f9q2", "show k3f9q2 --follow", "show k3f9q2 --json"))
async def show(
    terminal: Terminal,
    session: SESSION,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="go on with what happens, until the session ends or Ctrl-C")
    ] = False,
) -> None:
    """Show what happened in a session, event by event."""
    async with terminal.connection.open(resume=PATIENT) as client:
        chosen = await find_session(client, session)
        if not follow and terminal.json:
            terminal.output.show_json(await _everything(client, chosen.session_id))
            return
        if not terminal.json:
            _show_head(terminal.output, chosen)
        events = client.session(chosen.session_id).follow(previews=False, until_caught_up=not follow)
        async with absence_shown(events, terminal.errors), aclosing(aiter(events)) as stream:
            async for event in stream:
                if terminal.json:
                    terminal.output.show_json(event, one_line=True)
                else:
                    story.show_event(event, terminal.output, shell=terminal.shell)


@command(
    "export",
    panel=USE,
    json=False,
    examples=("export k3f9q2 > session.jsonl", "export k3f9q2 --format md > session.md"),
)
async def export(
    terminal: Terminal,
    session: SESSION,
    *,
    format: Annotated[  # noqa: A002 - the flag's name
        Format, typer.Option("--format", help="jsonl: each event as JSON; md: the conversation as Markdown")
    ] = Format.JSONL,
) -> None:
    """Print a session whole, as JSON lines or Markdown."""
    async with terminal.client() as client:
        chosen = await find_session(client, session)
        if format is Format.MD:
            terminal.output.show(
                f"# {chosen.title or chosen.session_id}\n\nSession {chosen.session_id} with {chosen.agent}."
            )
        async for response in _pages(client, chosen.session_id):
            for event in response.events:
                if format is Format.JSONL:
                    terminal.output.show_json(event, one_line=True)
                else:
                    _show_markdown(terminal.output, event)


def _show_head(output: Output, session: session_pb2.Session) -> None:
    state = word(session_pb2.SessionState, session.state)
    usage = session.usage
    output.show((session.title or session.session_id, "bold"))
    begun = f"session {short(session.session_id)} with {session.agent}, {state}, begun {day(session.create_time)}"
    output.show((f"{begun}; {usage.input_tokens} tokens in, {usage.output_tokens} out", "dim"))


def _show_markdown(output: Output, event: Event) -> None:
    """Prints an event's part of the conversation, if it has one."""
    match event.WhichOneof("payload"):
        case "message_received":
            received = event.message_received
            output.show(f"\n## {received.principal}\n\n{story.text_of(received.content)}")
        case "message_completed" if text := story.text_of(event.message_completed.content):
            output.show(f"\n## model\n\n{text}")
        case "tool_called":
            output.show(
                f"\n**{event.tool_called.tool}** was called with\n\n{_fenced(event.tool_called.arguments_json)}"
            )
        case "tool_returned":
            returned = event.tool_returned
            output.show(f"\n**{returned.tool}** returned\n\n{_fenced(returned.result_json)}")
        case "approval_decided":
            decided = event.approval_decided
            reason = f": {decided.reason}" if decided.reason else ""
            output.show(f"\n*{story.decided_by(decided)}{reason}*")
        case "turn_failed":
            output.show(f"\n*The turn failed: {event.turn_failed.error.message}*")


def _fenced(text: str) -> str:
    """Returns a block of code that ends after the text, whatever that holds."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}json\n{text}\n{fence}"


async def _pages(client: Client, session_id: str) -> AsyncIterator[session_pb2.ListEventsResponse]:
    request = session_pb2.ListEventsRequest(session_id=session_id, page_size=_PAGE)
    while True:
        response = await call(client.stubs.sessions.ListEvents, request)
        yield response
        if not response.more:
            return
        request.after = response.cursor


async def _everything(client: Client, session_id: str) -> session_pb2.ListEventsResponse:
    """Returns all events that exist now as one response."""
    events = session_pb2.ListEventsResponse()
    async for response in _pages(client, session_id):
        events.more = False
        events.MergeFrom(response)
    events.more = False
    return events
