"""The command `turnkeeper chat`."""

from datetime import timedelta
from typing import Annotated

import typer

from turnkeeper.terminal import piped
from turnkeeper.terminal.app import USE
from turnkeeper.terminal.chat_view import ChatView
from turnkeeper.terminal.command import Terminal, command
from turnkeeper.terminal.exit_codes import ExitCode
from turnkeeper.terminal.failures import CommandFailed
from turnkeeper.terminal.lookup import find_session
from turnkeeper.terminal.question import can_ask
from turnkeeper_client import Client, ResumePolicy, Session

PATIENT = ResumePolicy(patience=timedelta(days=1), start_patience=timedelta(days=1))
"""A chat waits for a server that is away: Ctrl-C ends it. Its first call does not wait."""
DEFAULT = "assistant"
"""The agent if none is named and the service has more than one."""


@command(
    "chat",
    panel=USE,
    examples=("chat", "chat clerk", "chat --session k3f9q2", "chat clerk < messages.txt"),
)
async def chat(
    terminal: Terminal,
    *,
    agent: Annotated[
        str, typer.Argument(metavar="[AGENT]", help="name of the agent; `turnkeeper agents` lists them")
    ] = "",
    session: Annotated[
        str, typer.Option(metavar="ID", help="go on with this session: its id, or the last 6 characters or more")
    ] = "",
) -> ExitCode:
    """Talk to an agent.

    On a terminal answers appear as they are written, and a call that needs a
    person's decision is a question in place. /help lists what else there is.

    In a pipe each line is a message, and nothing is approved: a turn that
    waits for a person ends the chat with status 3.
    """
    async with terminal.connection.open(resume=PATIENT) as client:
        chosen = await _session(client, agent, session)
        if terminal.json or not can_ask(terminal.output):  # the answers may be read by a program
            return await piped.talk(terminal, chosen)
        return await ChatView(terminal.output, client, chosen).run(goes_on=bool(session))


async def _session(client: Client, agent: str, session: str) -> Session:
    """Returns the session to talk in: a new one, or the one named. Raises CommandFailed."""
    if session:
        known = await find_session(client, session)
        if agent and agent != known.agent:
            raise CommandFailed(f"session {session} is with {known.agent}; leave {agent} out", ExitCode.USAGE)
        return client.session(known.session_id)
    return await client.sessions.create(agent or await _only_agent(client))


async def _only_agent(client: Client) -> str:
    names = [known.name async for known in client.agents.list()]
    if len(names) == 1 or DEFAULT in names:
        return DEFAULT if DEFAULT in names else names[0]
    raise CommandFailed(f"name the agent: turnkeeper chat {' | '.join(names) or 'AGENT'}", ExitCode.USAGE)
