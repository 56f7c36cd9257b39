"""The commands `turnkeeper agents`, `turnkeeper agents check` and `turnkeeper tools`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from turnkeeper.terminal import pages
from turnkeeper.terminal.app import LOOK, app
from turnkeeper.terminal.command import Terminal, command, examples_text, runnable
from turnkeeper.terminal.console import Output, Part, standard_error, standard_output
from turnkeeper.terminal.exit_codes import ExitCode
from turnkeeper.terminal.names import in_one_line, source_of, word
from turnkeeper_client.calls import call
from turnkeeper_client.pb.v1 import agent_pb2, event_pb2

_ACTIONS: Final = {
    event_pb2.POLICY_ACTION_AUTO: ("runs", ""),
    event_pb2.POLICY_ACTION_NOTIFY: ("runs, with a notice", ""),
    event_pb2.POLICY_ACTION_APPROVE: ("asks a person", "yellow"),
    event_pb2.POLICY_ACTION_DENY: ("is denied", "red"),
}
agents_app: Final = typer.Typer(
    help="List the agents of a service, or check a file of agents.",
    epilog=examples_text(("agents", "agents check agents.toml")),
    invoke_without_command=True,
)
app.add_typer(agents_app, name="agents", rich_help_panel=LOOK)


async def list_agents(terminal: Terminal) -> None:
    """List the agents that a session can be begun with."""
    async with terminal.client() as client:
        request = agent_pb2.ListAgentsRequest()
        response = await pages.read(client.stubs.agents.ListAgents, request, most=10_000)
    if terminal.json:
        terminal.output.show_json(response)
        return
    rows: list[list[Part]] = [
        [
            (agent.name, "bold"),
            agent.model,
            agent.version,
            str(len(agent.tools)),
            in_one_line(agent.description, longest=200),
        ]
        for agent in response.agents
    ]
    terminal.output.show_table(["AGENT", "MODEL", "VERSION", "TOOLS", "DESCRIPTION"], rows)


agents_app.callback(help="List the agents of a service, or check a file of agents.")(
    runnable(list_agents, json=True, is_group=True)
)


@agents_app.command(
    "check", epilog=examples_text(("agents check agents.toml", "agents check agents.toml --principals p.toml"))
)
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="file of agents, as `serve --agents` takes it")],
    *,
    tools: Annotated[
        Path | None, typer.Option(metavar="FILE.py", help="file of tools, as `serve --tools` takes it")
    ] = None,
    catalogue: Annotated[
        Path | None, typer.Option(metavar="FILE", help="file of tool servers, as `serve --catalogue` takes it")
    ] = None,
    principals: Annotated[
        Path | None, typer.Option(metavar="FILE", help="file of principals: warns of rules that need more people")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the finding as JSON")] = False,
) -> None:
    """Check a file of agents, as a start of the server does.

    The tools are those that are installed here, those of --tools, and those of the servers in --catalogue, of which
    only the names are compared: the check connects to none. With --principals it warns of each rule whose
    approval needs more persons than are eligible in a tenant.
    """
    from turnkeeper import agents_file  # noqa: PLC0415 - the parts of a server, for this command alone
    from turnkeeper.cannot_start import ERRORS  # noqa: PLC0415
    from turnkeeper.configured_files import toolbox_of  # noqa: PLC0415
    from turnkeeper.identity.principals import Table, parse  # noqa: PLC0415
    from turnkeeper.terminal.eligible import warnings  # noqa: PLC0415

    try:
        toolbox = toolbox_of(tools, catalogue)
        agents = agents_file.load(file, default_model="the server's", toolbox=toolbox)
        table = Table() if principals is None else parse(principals, principals.read_bytes())
    except (*ERRORS, OSError) as error:
        if as_json:
            _show_check(file, problem=str(error))
        else:
            standard_error().show(f"turnkeeper: {error}")
        raise typer.Exit(ExitCode.FAILED) from None
    notes = list(warnings(agents, table))
    if as_json:
        _show_check(file, agents=list(agents), warnings=notes)
        return
    for warning in notes:
        standard_error().show((f"warning: {warning}", "yellow"))
    standard_output().show(f"{file} is in order: {', '.join(agents)}")


def _show_check(file: Path, *, agents: Sequence[str] = (), warnings: Sequence[str] = (), problem: str = "") -> None:
    finding = {"file": str(file), "ok": not problem, "agents": agents, "warnings": warnings, "message": problem}
    standard_output().show(json.dumps(finding, indent=2))


@command("tools", panel=LOOK, examples=("tools", "tools clerk --schemas", "tools clerk --json"))
async def list_tools(
    terminal: Terminal,
    agent: Annotated[str, typer.Argument(metavar="[AGENT]", help="name of an agent", show_default=False)] = "",
    *,
    schemas: Annotated[bool, typer.Option("--schemas", help="also the schema of each tool's arguments")] = False,
) -> None:
    """List tools, and what happens to a call of each.

    Those of one agent, or of all agents: the rule of the policy that decides, or the tool's class.
    """
    async with terminal.client() as client:
        names = [agent] if agent else [chosen.name async for chosen in client.agents.list()]
        for name in names:
            response = await call(client.stubs.agents.GetAgent, agent_pb2.GetAgentRequest(name=name))
            if terminal.json:
                terminal.output.show_json(response)
            else:
                _show_tools(terminal.output, response, schemas=schemas)


def _show_tools(output: Output, response: agent_pb2.GetAgentResponse, *, schemas: bool) -> None:
    output.show((response.agent.name, "bold"), f"  {in_one_line(response.agent.description, longest=200)}")
    if not response.tools:
        output.show("  has no tools")
        return
    rows: list[list[Part]] = [
        [
            (f"  {tool.name}", "bold"),
            _ACTIONS.get(tool.action, ("", "")),
            _reason(tool),
            source_of(tool),
            in_one_line(tool.description, longest=200),
        ]
        for tool in response.tools
    ]
    output.show_table(["  TOOL", "A CALL", "BECAUSE OF", "SOURCE", "DESCRIPTION"], rows)
    for tool in response.tools if schemas else ():
        output.show_beside(f"  {tool.name}", json.dumps(json.loads(tool.schema_json), indent=2, ensure_ascii=False))


def _reason(tool: agent_pb2.AgentTool) -> str:
    """Returns what decides about a call."""
    if tool.asks and tool.action == event_pb2.POLICY_ACTION_APPROVE:
        return "the tool itself"
    return f"rule {tool.rule}" if tool.rule else f"class {word(event_pb2.ToolClass, tool.tool_class)}"
