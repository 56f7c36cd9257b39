"""Rules over arguments and over what the model has read, denials of an operator, and what a turn may ask at once."""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from tests import harness
from tests.contracts.stores import until
from tests.status_details import refused
from tests.test_tools import ToolControl
from turnkeeper.engine.rules.tool_calls import MOST_PENDING
from turnkeeper.pb.v1 import agent_pb2, approval_pb2, chat_pb2, event_pb2, operator_pb2

AUTO, APPROVE, DENY = event_pb2.POLICY_ACTION_AUTO, event_pb2.POLICY_ACTION_APPROVE, event_pb2.POLICY_ACTION_DENY
MANY = ", ".join(f'{{ name = "act", arguments = {{ label = "many-{number}" }} }}' for number in range(MOST_PENDING + 2))
ONE = r"""
[[reply]]
match = '^%(tool)s (?P<label>\S+)'
text = "I do that now."
tool_calls = [{ name = "%(tool)s", arguments = { label = "{label}" } }]
"""
SCRIPT = f"""
{"".join(ONE % {"tool": tool} for tool in ("act", "read_page", "hidden"))}

[[reply]]
match = '^many'
tool_calls = [{MANY}]

[[reply]]
text = "Told: {{tool_result}}"
"""
RULES = """
[[agent]]
name = "desk"
tools = ["*"]

[[agent.policy]]
tool = "act"
name = "no vault"
when = "args.label.startsWith('vault')"
action = "deny"

[[agent.policy]]
tool = "act"
name = "watched"
when = "args.label == 'odd' && args.missing == 1"
action = "auto"

[[agent.policy]]
tool = "act"
name = "strict soon"
when = "args.label.size() > 3"
action = "deny"
shadow = true

[[agent.policy]]
tool = "act"
name = "many"
when = "args.label.startsWith('many') || args.label.startsWith('ask')"
note = "Count them."
approve = { ttl = "10m" }

[[agent.policy]]
tool = "act"
name = "even so"
when = "args.label == 'even-so'"
action = "auto"
even_untrusted = true

[[agent.policy]]
tool = "act"
action = "auto"
"""


@pytest_asyncio.fixture
async def open_desk(
    mongo_uri: str, database_name: str, tool_control: ToolControl, tmp_path: Path
) -> AsyncIterator[Callable[[], contextlib.AbstractAsyncContextManager[harness.Stubs]]]:
    """Yields what starts a server of the desk's agent."""
    tool_control.install("tests.e2e.support.page_tools")
    agents = tmp_path / "agents.toml"
    agents.write_text(RULES)
    async with harness.scripted(SCRIPT) as model:

        @contextlib.asynccontextmanager
        async def opened() -> AsyncIterator[harness.Stubs]:
            async with (
                harness.serving(mongo_uri, database_name, model, agents=agents) as running,
                harness.connect(running.address) as stubs,
            ):
                yield stubs

        yield opened


Open = Callable[[], contextlib.AbstractAsyncContextManager[harness.Stubs]]


async def called(stubs: harness.Stubs, session: str) -> event_pb2.ToolCalled:
    """Returns the session's last tool_called."""
    events = await harness.all_events(stubs, session)
    return [event.tool_called for event in events if event.HasField("tool_called")][-1]


async def test_tool_called_names_the_rule_its_error_and_the_shadows(open_desk: Open) -> None:
    async with open_desk() as stubs:
        session = await harness.create_test_session(stubs, agent="desk")
        denied = await harness.send_message_to_session(stubs, session, "act vault-1")
        assert denied.state == chat_pb2.TURN_STATE_COMPLETED
        call = await called(stubs, session)
        assert (call.action, call.rule, call.policy_error, list(call.shadows)) == (DENY, "no vault", "", [])
        await harness.send_message_to_session(stubs, session, "act much")
        call = await called(stubs, session)
        assert (call.action, call.rule) == (AUTO, "act")
        assert [(shadow.rule, shadow.action) for shadow in call.shadows] == [("strict soon", DENY)]
        waiting_turn = await harness.send_message_to_session(stubs, session, "act odd")
        assert waiting_turn.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL, "an error never lets a call run"
        call = await called(stubs, session)
        assert (call.action, call.rule, call.policy_error) == (APPROVE, "watched", "missing")
        approval = await harness.wait_for_approval(stubs, session)
        assert approval.rule_text.endswith("; its condition cannot be read: missing")
        assert (approval.model_words, approval.source) == ("I do that now.", "python")


async def test_after_untrusted_output_an_irreversible_call_asks_in_later_turns_too(open_desk: Open) -> None:
    async with open_desk() as stubs:
        session = await harness.create_test_session(stubs, agent="desk")
        free = await harness.send_message_to_session(stubs, session, "act one")
        assert free.state == chat_pb2.TURN_STATE_COMPLETED
        read = await harness.send_message_to_session(stubs, session, "read_page news")
        assert read.state == chat_pb2.TURN_STATE_COMPLETED
        even_so = await harness.send_message_to_session(stubs, session, "act even-so")
        assert even_so.state == chat_pb2.TURN_STATE_COMPLETED, "the rule takes the question away"
        waiting_turn = await harness.send_message_to_session(stubs, session, "act two")
        assert waiting_turn.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL
        approval = await harness.wait_for_approval(stubs, session)
        assert approval.rule_text.endswith("; the model has read what an untrusted tool returned")
        await harness.decide(stubs, approval)
        ended = await harness.wait_for_turn(stubs, session, approval.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED, "it runs in the round that was decided"


async def test_a_forbidden_tool_is_neither_offered_nor_run(open_desk: Open) -> None:
    async with open_desk() as stubs:
        response = await stubs.agents.GetAgent(agent_pb2.GetAgentRequest(name="desk"))
        assert "hidden" not in [tool.name for tool in response.tools]
        session = await harness.create_test_session(stubs, agent="desk")
        await harness.send_message_to_session(stubs, session, "hidden x")
        events = await harness.all_events(stubs, session)
        [result] = [event.tool_returned for event in events if event.HasField("tool_returned")]
        assert "There is no tool named hidden" in result.result_json
        assert (result.outcome, result.started) == (event_pb2.TOOL_OUTCOME_NOT_FOUND, False)


async def test_a_turn_asks_about_32_calls_at_once_and_the_model_reads_what_is_refused(open_desk: Open) -> None:
    async with open_desk() as stubs:
        session = await harness.create_test_session(stubs, agent="desk")
        turn = await harness.send_message_to_session(stubs, session, "many")
        assert turn.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL
        listed = await stubs.approvals.ListApprovals(
            approval_pb2.ListApprovalsRequest(session_id=session, page_size=100)
        )
        assert len(listed.approvals) == len(turn.pending) == MOST_PENDING
        events = await harness.all_events(stubs, session)
        results = [event.tool_returned for event in events if event.HasField("tool_returned")]
        assert [result.outcome for result in results] == [event_pb2.TOOL_OUTCOME_DENIED] * 2
        assert all("32 calls of this turn wait for a person" in result.result_json for result in results)


async def test_a_policy_is_evaluated_without_a_trace(open_desk: Open) -> None:
    async with open_desk() as stubs:

        async def evaluate(label: str, *, untrusted: bool = False) -> agent_pb2.EvaluatePolicyResponse:
            request = agent_pb2.EvaluatePolicyRequest(
                agent="desk", tool="act", arguments_json=f'{{"label": "{label}"}}', untrusted=untrusted
            )
            return await stubs.agents.EvaluatePolicy(request)

        assert (await evaluate("vault-1")).rule == "no vault"
        asks = await evaluate("ask")
        assert (asks.action, asks.note, asks.ttl.ToSeconds(), asks.approvers.k) == (APPROVE, "Count them.", 600, 1)
        assert [(await evaluate("one")).action, (await evaluate("one", untrusted=True)).action] == [AUTO, APPROVE]
        assert (await evaluate("odd")).error == "missing"
        with refused("TOOL_VALIDATION_ERROR"):
            await stubs.agents.EvaluatePolicy(agent_pb2.EvaluatePolicyRequest(agent="desk", tool="act"))
        with refused("TOOL_NOT_FOUND"):
            await stubs.agents.EvaluatePolicy(agent_pb2.EvaluatePolicyRequest(agent="desk", tool="hidden"))
        with refused("AGENT_NOT_FOUND"):
            await stubs.agents.EvaluatePolicy(agent_pb2.EvaluatePolicyRequest(agent="none", tool="act"))


@pytest.mark.parametrize("pattern", ["act", "a*"])
async def test_a_denial_is_in_effect_on_every_replica_within_two_seconds(
    open_desk: Open, pattern: str, tool_control: ToolControl
) -> None:
    async with open_desk() as here, open_desk() as there:
        session = await harness.create_test_session(there, agent="desk")
        await harness.send_message_to_session(there, session, "act ask-1")
        waiting = await harness.wait_for_approval(there, session)
        request = agent_pb2.EvaluatePolicyRequest(agent="desk", tool="act", arguments_json='{"label": "one"}')

        async def is_denied_there() -> bool:
            return (await there.agents.EvaluatePolicy(request)).action == DENY

        async def runs_there() -> bool:
            return (await there.agents.EvaluatePolicy(request)).action == AUTO

        await here.operator.DenyTool(operator_pb2.DenyToolRequest(pattern=pattern, reason="a flood"))
        assert (await here.agents.EvaluatePolicy(request)).rule == f"DenyTool {pattern}"
        await until(is_denied_there, within=2.0)
        await harness.decide(there, waiting)
        ended = await harness.wait_for_turn(there, session, waiting.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert not tool_control.effects("ask-1"), "an approval does not let a denied tool run"
        listed = await there.operator.ListDeniedTools(operator_pb2.ListDeniedToolsRequest())
        assert [(denial.pattern, denial.reason) for denial in listed.denials] == [(pattern, "a flood")]
        assert (await here.operator.AllowTool(operator_pb2.AllowToolRequest(pattern=pattern))).allowed
        await until(runs_there, within=2.0)
