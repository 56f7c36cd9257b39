"""A file of agents: what it can say, and how a mistake in it is named."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from turnkeeper import agents_file
from turnkeeper.domain.agent import Agent, AgentLimits
from turnkeeper.domain.approvers import Approvers
from turnkeeper.domain.policy import PolicyRule
from turnkeeper.domain.tool import PolicyAction, ToolSpec
from turnkeeper.errors import AgentConfigError
from turnkeeper.rpc.views import agent_view
from turnkeeper.tools import samples
from turnkeeper.tools.contract import SourceUnreachable
from turnkeeper.tools.python import PythonTools
from turnkeeper.tools.toolbox import Toolbox

FULL = """
[[agent]]
name = "clerk-2"
model = "large"
instructions = "Be careful."
description = "Sends."
base_url = "http://127.0.0.1:8000/v1"
api_key_env = "CLERK_KEY"
temperature = 0.2
tools = ["send_*", "add"]

[agent.limits]
max_iterations = 3
max_output_tokens = 0
max_attempts = 2
tool_timeout = "1.5s"
parallel_tools = 1

[[agent.policy]]
tool = "send_mail"
action = "deny"

[[agent.policy]]
tool = "*"
action = "approve"
ttl = "7d"

[[agent]]
name = "plain"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "agents.toml"


def test_a_file_with_every_field(file: Path) -> None:
    file.write_text(FULL)
    assert agents_file.load(file, default_model="small") == {
        "clerk-2": Agent(
            name="clerk-2",
            model="large",
            instructions="Be careful.",
            description="Sends.",
            base_url="http://127.0.0.1:8000/v1",
            api_key_env="CLERK_KEY",
            temperature=0.2,
            tools=("send_*", "add"),
            policy=(
                PolicyRule(tool="send_mail", action=PolicyAction.DENY),
                PolicyRule(tool="*", action=PolicyAction.APPROVE, ttl=timedelta(days=7)),
            ),
            limits=AgentLimits(
                max_iterations=3,
                max_output_tokens=0,
                max_attempts=2,
                tool_timeout=timedelta(seconds=1.5),
                parallel_tools=1,
            ),
        ),
        "plain": Agent(name="plain", model="small"),
    }


def test_the_samples_that_come_with_the_service() -> None:
    samples = agents_file.load(agents_file.SAMPLES, default_model="small")
    assert set(samples) == {"assistant", "clerk"}
    assert all(agent.model == "small" and agent.description for agent in samples.values())


def test_a_rule_names_who_may_decide(tmp_path: Path) -> None:
    text = """
[[agent]]
name = "clerk"

[[agent.policy]]
tool = "refund"
name = "refunds"
note = "Look at the order first."
approve = { groups = ["support", "finance"], k = 2, veto = false, reject_at = 3, ttl = "5m" }

[[agent.policy]]
tool = "send_*"
action = "approve"
[agent.policy.approve]
principals = ["ada"]
exclude_requester = false
direct = true
remember = false
"""
    (tmp_path / "agents.toml").write_text(text)
    first, second = agents_file.load(tmp_path / "agents.toml", default_model="small")["clerk"].policy
    assert first == PolicyRule(
        tool="refund",
        action=PolicyAction.APPROVE,
        name="refunds",
        note="Look at the order first.",
        ttl=timedelta(minutes=5),
        approvers=Approvers(groups=frozenset({"finance", "support"}), k=2, veto=False, reject_at=3),
    )
    assert first.title == "refunds"
    assert first.text == (
        'tool = "refund", action = "approve", ttl = "5m", groups = ["finance", "support"], k = 2, veto = false, '
        "reject_at = 3"
    )
    assert second.approvers == Approvers(
        principals=frozenset({"ada"}), exclude_requester=False, direct=True, remember=False
    )
    assert second.title == "send_*"


ONE = '[[agent]]\nname = "clerk"\n'


LIMITS = "[agent.limits]\n"
RULE = "[[agent.policy]]\ntool = '*'\n"
DEEP = "[" * 5000 + "]" * 5000


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("\n[[agent", 2, "this is not TOML: Expected"),
        ("", 1, "the file has no [[agent]]"),
        ("\nagent = 5", 2, "the file has no [[agent]]"),
        ("agent = [5]", 1, "agent 1 must be a table"),
        ("[[agents]]\nname = 'clerk'", 1, "the file: there is no key 'agents'; did you mean agent?"),
        ("[[agent]]\nmodel = 'x'", 1, "agent 1: name must match"),
        ("[[agent]]\nname = 'The Clerk'", 2, "agent 1: name must match"),
        ("[[agent]]\nname = 5", 2, "agent 1: name must match"),
        (ONE + ONE, 4, "agent 2 (clerk): name is clerk, as of an agent before"),
        (ONE + "modell = 'x'", 3, "agent 1 (clerk): there is no key 'modell'; did you mean model?"),
        (
            ONE + "max-iterations = 3",
            3,
            "agent 1 (clerk): there is no key 'max-iterations'; max_iterations belongs to [agent.limits].",
        ),
        (ONE + "[agent.limits]\nTools = []", 4, "limits: there is no key 'Tools'; tools belongs to [[agent]]."),
        (ONE + "zzz = 'x'", 3, "agent 1 (clerk): there is no key 'zzz'; the keys are api_key_env, base_url,"),
        (ONE + "model = 5", 3, "agent 1 (clerk): model must be a string"),
        (ONE + "instructions = ['x']", 3, "agent 1 (clerk): instructions must be a string"),
        (ONE + 'model = "a\\u0000"', 3, "agent 1 (clerk): model must be a string without NUL characters"),
        (ONE + f"description = '{'x' * 5000}'", 3, "agent 1 (clerk): description has more than 4,096 characters"),
        (ONE + f"instructions = '{'x' * 300_000}'", 3, "instructions has more than 262,144 characters"),
        (ONE + "tools = 'add'", 3, "agent 1 (clerk): tools must be a list"),
        (ONE + "tools = [1]", 3, "agent 1 (clerk): tools must be a list"),
        (ONE + f"tools = {['a'] * 1001}", 3, "agent 1 (clerk): tools can have 1,000 items"),
        (ONE + "temperature = 'hot'", 3, "agent 1 (clerk): temperature must be a number from 0 to 10"),
        (ONE + "temperature = true", 3, "agent 1 (clerk): temperature must be a number"),
        (ONE + "temperature = nan", 3, "agent 1 (clerk): temperature must be a number"),
        (ONE + "temperature = -0.1", 3, "agent 1 (clerk): temperature is -0.1; it must be a number from 0 to 10"),
        (ONE + "temperature = 1e300", 3, "temperature is 1e+300; it must be"),
        (ONE + f"temperature = {DEEP}", 3, "this is not TOML: it is nested too deeply"),
        (ONE + f"temperature = {'[' * 5000}", 3, "this is not TOML: it is nested too deeply"),
        (ONE + "model" + ".a" * 5000 + " = 1", 3, "this is not TOML: it is nested too deeply"),
        (ONE + "limits = 5", 3, "agent 1 (clerk), limits must be a table"),
        (ONE + LIMITS + "speed = 1", 4, "agent 1 (clerk), limits: there is no key 'speed'"),
        (
            ONE + LIMITS + "max_iterations = 0",
            4,
            "limits: max_iterations is 0; it must be a whole number from 1 to 10,000",
        ),
        (ONE + LIMITS + f"max_iterations = {2**31}", 4, "limits: max_iterations is 2147483648; it must be"),
        (ONE + LIMITS + f"max_iterations = {2**63}", 4, "max_iterations is 9223372036854775808; it must be"),
        (ONE + LIMITS + f"max_iterations = {'9' * 5000}", 4, "this is not TOML: a whole number has too many digits"),
        (ONE + LIMITS + f"max_iterations = 0x{'f' * 5000}", 4, "this is not TOML: a whole number has too many digits"),
        (ONE + "[agent.extra_body]\nx = 99999999999999999999", 3, "extra_body holds a date, a time or a number"),
        (ONE + LIMITS + "max_iterations = true", 4, "limits: max_iterations must be a whole number"),
        (ONE + LIMITS + "max_iterations = 1.0", 4, "limits: max_iterations must be a whole number"),
        (ONE + LIMITS + "max_output_tokens = -1", 4, "max_output_tokens is -1; it must be a whole number from 0 to"),
        (ONE + LIMITS + f"max_output_tokens = {2**31}", 4, "max_output_tokens is 2147483648; it must be"),
        (ONE + LIMITS + "max_attempts = 101", 4, "max_attempts is 101; it must be a whole number from 1 to 100"),
        (ONE + LIMITS + "parallel_tools = 0", 4, "parallel_tools is 0; it must be a whole number from 1 to 1,000"),
        (ONE + LIMITS + "tool_timeout = 5", 4, "tool_timeout must be a duration such as"),
        (ONE + LIMITS + "tool_timeout = '0s'", 4, "tool_timeout must be a duration such as"),
        (ONE + LIMITS + "tool_timeout = '8d'", 4, "tool_timeout must be at most 7d"),
        (ONE + "max_concurrent_turns = 0", 3, "max_concurrent_turns is 0; it must be a whole number from 1 to 100,000"),
        (ONE + LIMITS + "max_concurrent_turns = 1", 4, "max_concurrent_turns belongs to [[agent]]."),
        (ONE + "policy = 5", 3, "agent 1 (clerk): policy must be a list: write [[agent.policy]]"),
        (ONE + "[agent.policy]\ntool = '*'\naction = 'auto'", 3, "agent 1 (clerk): policy must be a list"),
        (ONE + "policy = [1]", 3, "agent 1 (clerk), policy 1 must be a table"),
        (ONE + RULE, 3, "policy 1: action must be one of auto, notify"),
        (ONE + "[[agent.policy]]\naction = 'auto'", 3, "policy 1: tool is missing"),
        (ONE + RULE + "action = 'ask'", 5, "policy 1: action must be one of"),
        (ONE + RULE + "action = 'AUTO'", 5, "policy 1: action must be one of"),
        (ONE + RULE + "zzz = 'now'", 5, "policy 1: there is no key 'zzz'; the keys are action, "),
        (ONE + RULE + "k = 2", 5, "policy 1: there is no key 'k'; k belongs to [agent.policy.approve]."),
        (ONE + RULE + "action = 'auto'\napprove = { k = 2 }", 6, 'policy 1: approve needs action = "approve"'),
        (ONE + RULE + "approve = { k = 0 }", 5, "policy 1, approve: k is 0; it must be a whole number from 1 to 100"),
        (ONE + RULE + "approve = { groups = [] }", 5, "policy 1, approve: groups is empty: leave it out, and any"),
        (ONE + RULE + "approve = { principals = [] }", 5, "policy 1, approve: principals is empty: leave it out"),
        (ONE + RULE + "approve = { reject_at = 2 }", 5, "policy 1, approve: reject_at needs veto = false"),
        (
            ONE + RULE + "approve = { tool = 'x' }",
            5,
            "approve: there is no key 'tool'; tool belongs to [[agent.policy]].",
        ),
        (ONE + RULE + "ttl = '1h'\napprove = { ttl = '1h' }", 5, "policy 1: ttl is there twice: here and in approve"),
        (ONE + RULE + "action = 'approve'\nttl = 'never'", 6, "policy 1: ttl must be a duration"),
        (ONE + RULE + "action = 'approve'\nttl = '99999999999999999999d'", 6, "policy 1: ttl must be a duration"),
        (
            ONE + RULE + "action = 'auto'\n" + RULE + "action = 'approve'\nttl = '367d'",
            9,
            "policy 2: ttl must be at most 366d",
        ),
        (ONE + 'base_url = "http://[::1"', 3, "agent 1 (clerk): base_url cannot be: the model's address is no URL"),
        (ONE + 'base_url = "api.openai.com"', 3, "base_url cannot be: the model's address must begin with http"),
        (ONE + 'base_url = "http://host:99999/v1"', 3, "base_url cannot be: the model's address has a host or a port"),
        (ONE + 'base_url = "http://ho st/v1"', 3, "base_url cannot be: the model's address has"),
        (ONE + 'base_url = "http://a..b/v1"', 3, "base_url cannot be: the model's address has a host or a port"),
        (ONE + 'base_url = "http://host/v1#x"', 3, "base_url cannot be: the model's address has a fragment"),
        (ONE + 'base_url = "http://host\\u0001/v1"', 3, "base_url cannot be: "),
        (ONE + "api_key_env = 'sk-1234567890'", 3, "api_key_env must be the name of an environment variable"),
        (ONE + "limit_field = 'max'", 3, "limit_field must be max_tokens or max_completion_tokens"),
        (ONE + "omit = ['messages']", 3, "omit cannot have messages: there is no call without it"),
        (ONE + "omit = ['a b']", 3, "omit must be a list of names of fields"),
        (ONE + "follow_redirects = 1", 3, "follow_redirects must be true or false"),
        (ONE + "extra_headers = 1", 3, "agent 1 (clerk), extra_headers must be a table"),
        (ONE + "[agent.extra_headers]\nx = 1", 4, "extra_headers: x must be a string"),
        (ONE + "[agent.extra_headers]\n'x y' = '1'", 4, "extra_headers: x y cannot be: the name of a header has"),
        (ONE + "[agent.extra_headers]\nHost = 'h'", 4, "Host cannot be: the header Host is set by the connection"),
        (ONE + '[agent.extra_headers]\nx = "a\\nb"', 4, "x cannot be: the header x holds characters"),
        (ONE + "[agent.extra_headers]\na = '1'\nA = '2'", 5, "extra_headers: A is there twice"),
        (ONE + "[agent.extra_body]\nstream = false", 4, "extra_body: stream cannot be set: the service sets it"),
        (ONE + "[agent.extra_body]\ntemperature = 1", 4, "temperature cannot be set here: set the agent's temperature"),
        (
            ONE + "[agent.extra_body]\nmax_tokens = 1",
            4,
            "cannot be set here: set the agent's max_output_tokens of limits",
        ),
        (ONE + "[agent.extra_body]\nday = 2031-01-01", 3, "extra_body holds a date, a time or a number that JSON"),
        (ONE + "[agent.extra_body]\nx = inf", 3, "extra_body holds a date, a time or a number that JSON"),
        (ONE + f"[agent.extra_body]\nx = '{'x' * 70_000}'", 3, "extra_body has more than 65,536 bytes"),
        (f"instructions = {DEEP}\n" + ONE, 1, "this is not TOML: it is nested too deeply"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(file: Path, text: str, line: int, complaint: str) -> None:
    file.write_text(text)
    with pytest.raises(AgentConfigError) as raised:
        agents_file.load(file, default_model="small")
    message = raised.value.message
    assert message.startswith(f"{file}:{line}: ")
    assert complaint in message
    assert "\n" not in message
    assert "1234567890" not in message, "a key that stands in the wrong place is not repeated"


TOOLS = Toolbox([PythonTools([samples.add, samples.send_message, samples.current_time])])


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        (
            "tools = ['add', 'send_mesage']",
            3,
            "tools names 'send_mesage', and no source has such a tool; did you mean send_message?",
        ),
        ("tools = ['zzzzzz']", 3, "no source has such a tool; the tools are add, current_time, send_message."),
        ("tools = ['ADD']", 3, "tools names 'ADD', and no source has such a tool"),
        (
            RULE + "action = 'auto'\n[[agent.policy]]\ntool = 'ad'\naction = 'deny'",
            7,
            "policy 2: tool names 'ad', and no source has such a tool; did you mean add?",
        ),
    ],
)
def test_a_tool_that_no_source_has(file: Path, text: str, line: int, complaint: str) -> None:
    file.write_text(ONE + text)
    with pytest.raises(AgentConfigError) as raised:
        agents_file.load(file, default_model="small", toolbox=TOOLS)
    assert raised.value.message.startswith(f"{file}:{line}: agent 1 (clerk)")
    assert complaint in raised.value.message


def test_a_pattern_that_fits_no_tool_is_a_warning(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text(ONE + "tools = ['*', 'send_*', 'pay_*']\n" + RULE + "action = 'auto'")
    agents_file.load(file, default_model="small", toolbox=TOOLS)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == f"{file}:3: agent 1 (clerk): no tool fits 'pay_*' now; the agent runs without it"


def test_a_name_that_a_source_out_of_reach_may_have_is_a_warning(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    class OutOfReach(PythonTools):
        def specs(self) -> Sequence[ToolSpec]:
            raise SourceUnreachable("tools.internal:443 does not answer")

    file.write_text(ONE + "tools = ['add', 'refund']\n[[agent.policy]]\ntool = 'refund'\naction = 'deny'")
    toolbox = Toolbox([PythonTools([samples.add]), OutOfReach([])])
    assert agents_file.load(file, default_model="small", toolbox=toolbox)["clerk"].tools == ("add", "refund")
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [message.partition(": ")[0] for message in messages] == [f"{file}:3", f"{file}:5"]


def test_the_keys_for_a_server_that_differs(file: Path) -> None:
    file.write_text(
        ONE
        + """
base_url = "https://x.openai.azure.com/openai/deployments/d?api-version=2024-10-21"
limit_field = "max_tokens"
omit = ["stream_options", "response_format"]
follow_redirects = true
extra_headers = { api-key = "${AZURE_KEY}", X-Team = "night" }
[agent.extra_body]
top_p = 0.1
provider = { order = ["a", "b"] }
"""
    )
    agent = agents_file.load(file, default_model="small")["clerk"]
    assert agent == Agent(
        name="clerk",
        model="small",
        base_url="https://x.openai.azure.com/openai/deployments/d?api-version=2024-10-21",
        limit_field="max_tokens",
        omit=("stream_options", "response_format"),
        follow_redirects=True,
        extra_headers=(("api-key", "${AZURE_KEY}"), ("X-Team", "night")),
        extra_body_json='{"provider": {"order": ["a", "b"]}, "top_p": 0.1}',
    )


def test_the_greatest_values_are_taken(file: Path) -> None:
    file.write_text(
        ONE
        + "temperature = 10\n[agent.limits]\nmax_iterations = 10000\nmax_output_tokens = 10000000\nmax_attempts = 100\n"
        + "parallel_tools = 1000\ntool_timeout = '7d'\n"
        + RULE
        + "action = 'approve'\nttl = '366d'"
    )
    agent = agents_file.load(file, default_model="small")["clerk"]
    assert agent_view(agent).limits.max_output_tokens == 10_000_000


def test_a_version_that_was_stored_with_any_number_can_be_shown() -> None:
    """An agents file could hold any number before it had bounds; a session may have pinned it."""
    stored = Agent(name="clerk", model="small", limits=AgentLimits(max_iterations=2**31, max_output_tokens=2**62))
    assert agent_view(stored).limits.max_iterations == 2**31 - 1
    assert agent_view(stored).limits.max_output_tokens == 2**31 - 1


def test_a_file_that_is_too_long_and_a_device_are_refused(file: Path) -> None:
    for path in (Path("/dev/zero"), file):
        file.write_text("#" * (agents_file.MAX_BYTES + 1))
        with pytest.raises(AgentConfigError, match="cannot be read: it has more than"):
            agents_file.load(path, default_model="small")


def test_a_missing_file(file: Path) -> None:
    with pytest.raises(AgentConfigError, match="There is no file"):
        agents_file.load(file, default_model="small")


def test_a_folder_or_a_file_of_bytes_is_refused(file: Path, tmp_path: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    for path in (file, tmp_path):
        with pytest.raises(AgentConfigError, match="cannot be read"):
            agents_file.load(path, default_model="small")
