"""The command `turnkeeper policy test`: what a policy would decide on a call. Runs nothing."""

from pathlib import Path
from typing import Annotated, Final

import typer

from turnkeeper.terminal.app import LOOK, app
from turnkeeper.terminal.command import Terminal, examples_text, runnable
from turnkeeper.terminal.console import Output
from turnkeeper.terminal.failures import CommandFailed
from turnkeeper.terminal.names import in_one_line, word
from turnkeeper_client.calls import call
from turnkeeper_client.pb.v1 import agent_pb2, event_pb2

EXAMPLES: Final = (
    'policy test clerk send_message \'{"to": "ada", "text": "hello"}\'',
    "policy test desk refund '{\"cents\": 9000}' --file agents.toml --tools desk.py",
)
policy_app: Final = typer.Typer(help="Try the rules of an agent's policy.", epilog=examples_text(EXAMPLES[:1]))
app.add_typer(policy_app, name="policy", rich_help_panel=LOOK)


async def try_policy(  # noqa: PLR0913 - what a policy reads of a call
    terminal: Terminal,
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="name of an agent")],
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="name of one of its tools")],
    arguments: Annotated[str, typer.Argument(metavar="[ARGUMENTS]", help="JSON object", show_default=False)] = "",
    *,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="try this file of agents, and not the service's")
    ] = None,
    tools: Annotated[
        Path | None, typer.Option(metavar="FILE.py", help="with --file: file of tools, as `serve --tools` takes it")
    ] = None,
    catalogue: Annotated[
        Path | None, typer.Option(metavar="FILE", help="with --file: what `serve --catalogue` takes; its classes count")
    ] = None,
    principal: Annotated[
        str, typer.Option(metavar="NAME", help="who sends the message [you]", show_default=False)
    ] = "",
    group: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="with --file: a group of the principal; may be repeated")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="a label of the session; may be repeated")
    ] = None,
    untrusted: Annotated[
        bool, typer.Option("--untrusted", help="the model has read what an untrusted tool returned")
    ] = False,
) -> None:
    """Show what a policy would decide on a tool call. Nothing runs.

    The rules are those of the service, or those of --file.
    """
    request = agent_pb2.EvaluatePolicyRequest(
        agent=agent, tool=tool, arguments_json=arguments, principal=principal, untrusted=untrusted
    )
    for text in label or ():
        name, separator, value = text.partition("=")
        if not separator:
            raise CommandFailed(f"--label {text} has no value: write NAME=VALUE.")
        request.labels[name] = value
    if file is not None:
        response = _tried(request, file, tools, catalogue, groups=frozenset(group or ()))
    elif tools is not None or catalogue is not None or group:
        raise CommandFailed("--tools, --catalogue and --group need --file: without it the service has its own.")
    else:
        async with terminal.client() as client:
            response = await call(client.stubs.agents.EvaluatePolicy, request)
    if terminal.json:
        terminal.output.show_json(response)
    else:
        _show(terminal.output, response)


policy_app.command("test", epilog=examples_text(EXAMPLES))(runnable(try_policy, json=True))


def _tried(
    request: agent_pb2.EvaluatePolicyRequest,
    file: Path,
    tools: Path | None,
    catalogue: Path | None,
    *,
    groups: frozenset[str],
) -> agent_pb2.EvaluatePolicyResponse:
    """Returns what the rules of a file decide. Raises CommandFailed if the file cannot be used, or the call not be."""
    from turnkeeper import agents_file  # noqa: PLC0415 - the parts of a server, for this option alone
    from turnkeeper.cannot_start import ERRORS  # noqa: PLC0415
    from turnkeeper.configured_files import toolbox_of  # noqa: PLC0415
    from turnkeeper.engine.rules.policy_trial import evaluated  # noqa: PLC0415
    from turnkeeper.errors import SessionError  # noqa: PLC0415
    from turnkeeper.policy.policies import Policies  # noqa: PLC0415
    from turnkeeper.rpc import codec  # noqa: PLC0415

    try:
        toolbox = toolbox_of(tools, catalogue)
        agents = agents_file.load(file, default_model="the server's", toolbox=toolbox)
        if request.agent not in agents:
            raise CommandFailed(f"{file} has no agent {request.agent}; it has {', '.join(agents)}.")
        ruling = evaluated(
            Policies(agents, groups_of=lambda _tenant, _principal: groups),
            toolbox,
            agents[request.agent],
            tool=request.tool,
            arguments_json=request.arguments_json,
            tenant="default",
            principal=request.principal or "local",
            labels=dict(request.labels),
            untrusted=request.untrusted,
        )
    except (*ERRORS, SessionError) as error:
        raise CommandFailed(str(error)) from None
    return codec.fill(agent_pb2.EvaluatePolicyResponse(), ruling)


def _show(output: Output, response: agent_pb2.EvaluatePolicyResponse) -> None:
    output.show((word(event_pb2.PolicyAction, response.action), "bold"), f"  {response.rule or 'no rule'}")
    output.show(f"  {in_one_line(response.rule_text, longest=4_096)}")
    if response.error:
        output.show((f"  the condition ended with an error: {response.error}", "yellow"))
    if response.note:
        output.show(f"  {in_one_line(response.note, longest=4_096)}")
    for shadow in response.shadows:
        does = word(event_pb2.PolicyAction, shadow.action)
        output.show((f"  shadow rule {shadow.rule} would: {does}{f' ({shadow.error})' if shadow.error else ''}", "dim"))
