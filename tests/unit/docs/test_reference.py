"""The reference tells the truth: its tables are the code's."""

import inspect
import re
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import pytest

from docs import generate
from tests.unit.docs.pages import DOCS, blocks, reference, table
from turnkeeper import agents_file, agents_table, config_file, descriptors, setting_types, settings
from turnkeeper.admission import gate, memory
from turnkeeper.codes import Code
from turnkeeper.domain import json_text, message
from turnkeeper.domain.agent import Agent, AgentLimits
from turnkeeper.domain.approvers import Approvers
from turnkeeper.domain.event import KINDS
from turnkeeper.domain.policy import PolicyRule
from turnkeeper.domain.tool import PolicyAction, ToolClass, ToolOutcome
from turnkeeper.engine import delegations, operations, turns
from turnkeeper.engine.eventlog import session_lines
from turnkeeper.engine.rules import messages as message_rules
from turnkeeper.engine.streaming import batch
from turnkeeper.errors_by_code import leaves
from turnkeeper.identity import forwarded, key_set, key_source, tokens
from turnkeeper.limits import table as limits_table
from turnkeeper.limits.profile import BUILT_IN, Cap, Scope
from turnkeeper.model import beside, openai_request
from turnkeeper.model.by_agent import CLOUD_MODEL
from turnkeeper.model.openai import OpenAIModel
from turnkeeper.pb.v1 import error_pb2, event_pb2
from turnkeeper.rpc import bodies, chat, client_tools, page_tokens, server, session_fields, status, validation
from turnkeeper.rpc.status import advice, stream_retry_after
from turnkeeper.store.mongo import changesets
from turnkeeper.tools import results, samples, threads, toolbox, untrusted_schema
from turnkeeper.tools.contract import ToolContext
from turnkeeper.tools.python import PythonTools, installed

AGENTS, TOOLS, ERRORS = reference("agents"), reference("tools"), reference("errors")


def test_the_generated_parts_are_current() -> None:
    for page, text in generate.pages().items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name} is not current: run `make docs`"


def test_every_part_has_its_place() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in generate.pages())
    assert all(f"<!-- generated: {part} -->" in text for part in generate.PARTS)


def advice_of(code: Code, *, on_stream: bool = False) -> str:
    number = error_pb2.RetryAdvice.ValueType(advice(code, on_stream=on_stream))
    return error_pb2.RetryAdvice.Name(number).removeprefix("RETRY_ADVICE_")


def test_every_code_has_its_row() -> None:
    rows = table(ERRORS, "number", "code", "gRPC status", "unary", "on a stream", "meaning")
    assert [[*row[:4], row[4].partition(",")[0], row[5]] for row in rows] == [
        [
            str(code.value),
            code.name,
            leaves()[code].family.name,
            advice_of(code),
            advice_of(code, on_stream=True),
            leaves()[code]().message,
        ]
        for code in Code
    ]


def test_the_waits_of_streams_are_those_that_the_service_sends() -> None:
    rows = table(ERRORS, "number", "code", "gRPC status", "unary", "on a stream", "meaning")
    waits = {code.name: f", after {wait.total_seconds():g} s" for code in Code if (wait := stream_retry_after(code))}
    assert {row[1]: row[4].removeprefix("RESUME_STREAM") for row in rows if "after" in row[4]} == waits


def test_every_code_documents_when_it_is_raised() -> None:
    rows = table(ERRORS, "code", "when")
    assert [row[0] for row in rows] == [code.name for code in Code]
    assert all(row[1] for row in rows)


def test_every_advice_has_its_row() -> None:
    advices = {row[0] for row in table(ERRORS, "advice", "what to do")}
    assert advices == {name.removeprefix("RETRY_ADVICE_") for name in error_pb2.RetryAdvice.keys()} - {"UNSPECIFIED"}  # noqa: SIM118


def test_every_field_of_the_error_detail_has_its_row() -> None:
    fields = [name for row in table(ERRORS, "field", "type", "meaning") for name in row[0].split(", ")]
    assert sorted(fields) == sorted(field.name for field in error_pb2.SessionErrorDetail.DESCRIPTOR.fields)


@pytest.mark.parametrize("row", table(reference("status"), "service", "rpc", "status"), ids=lambda row: row[1])
def test_an_rpc_of_a_later_release_is_marked_in_the_protos(row: list[str]) -> None:
    service, method, works = row
    file = next(file for file, service_name in generate.services() if service_name.name == service)
    (proto,) = file.proto.service
    place = [rpc.name for rpc in proto.method].index(method)
    assert ("Not implemented yet" in file.said(6, 0, 2, place)) == (works == "later")


@pytest.mark.parametrize("event", [field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields])
def test_an_event_that_is_not_sent_is_marked_in_the_protos(event: str) -> None:
    file, place = generate.messages()["Event"]
    comments = {field.name: comment for field, comment in file.fields(place)}
    assert ("Not sent yet" in comments[event]) == (event not in KINDS and event not in generate.PREVIEWS)


def test_the_keys_of_an_agent() -> None:
    rows = table(AGENTS, "key", "type", "default", "meaning")
    assert {row[0] for row in rows} == {field.name.removesuffix("_json") for field in fields(Agent)}


def test_the_keys_of_a_rule_and_its_actions() -> None:
    after = AGENTS.partition("## Policy")[2]
    rows = {row[0]: row[2] for row in table(after, "key", "type", "default", "meaning")}
    assert rows == {
        "tool": "required",
        "action": "required",
        "class": "any",
        "when": "always",
        "even_untrusted": "false",
        "shadow": "false",
        "ttl": "1h",
        "name": "its tool",
        "note": '""',
        "approve": "{}",
    }
    approve = after.partition("### Who may decide")[2]
    keys = {row[0]: row[2] for row in table(approve, "key", "type", "default", "meaning")}
    shown = {field.name: settings.shown(field.default).lower() for field in fields(Approvers)}
    assert keys == {**shown, "groups": "[]", "principals": "[]", "reject_at": "k", "ttl": "1h"}
    assert PolicyRule(tool="*", action=PolicyAction.AUTO).ttl == timedelta(hours=1)
    actions = {row[0] for row in table(AGENTS, "action", "what happens")}
    assert actions == {action.value.lower() for action in PolicyAction}


def test_the_limits_of_an_agent() -> None:
    after = AGENTS.partition("## Limits")[2]
    rows = {row[0]: row[2] for row in table(after, "key", "type", "default", "meaning")}
    assert rows == {field.name: settings.shown(field.default) for field in fields(AgentLimits)}
    bounds = {row[0]: row[1] for row in table(after, "key", "type", "default", "meaning")}
    limits = set(rows)
    assert {name: bounds[name] for name in agents_table.RANGES if name in bounds} == {
        name: f"{least:,} to {most:,}" for name, (least, most) in agents_table.RANGES.items() if name in limits
    }


def test_the_example_is_a_file_of_agents(tmp_path: Path) -> None:
    (example,) = blocks(AGENTS, "toml")
    (tmp_path / "agents.toml").write_text(example)
    agents = agents_file.load(tmp_path / "agents.toml", default_model="small")
    assert [(agent.name, agent.model) for agent in agents.values()] == [
        ("clerk", "gpt-4.1-mini"),
        ("night-shift", "llama-3.3-70b"),
    ]


def test_the_example_is_a_file_of_limits() -> None:
    (example,) = blocks((DOCS / "operations/limits-and-rates.md").read_text(encoding="utf-8"), "toml")
    limits = limits_table.parse(Path("limits.toml"), example.encode(), methods=server.OUR_METHODS)
    acme = limits.of("acme")
    assert acme.rates[Scope.PRINCIPAL, "SendMessage"].per_minute == 120
    assert acme.caps == {Cap.STREAMS: 200, Cap.WAITS: 100, Cap.TURNS_UNDER_WAY: 32, Cap.TURNS_QUEUED: 500}


def test_the_built_in_profiles_are_as_the_page_has_them() -> None:
    page = (DOCS / "operations/limits-and-rates.md").read_text(encoding="utf-8")
    rows = {row[0]: row for row in table(page, "profile", "principal, calls a minute", "streams")}
    assert rows.keys() == BUILT_IN.keys()
    named = {name: dict(re.findall(r"(\w+) ([\d,]+)", row[1])) for name, row in rows.items()}
    for name, profile in BUILT_IN.items():
        shown = {limit: int(calls.replace(",", "")) for limit, calls in (named["default"] | named[name]).items()}
        assert {limit: rate.per_minute for (_, limit), rate in profile.rates.items()} == shown
        assert rows[name][2] == f"{profile.caps[Cap.STREAMS]:,}"


def test_the_example_is_a_file_of_settings(tmp_path: Path) -> None:
    (example,) = blocks((DOCS / "guide/running.md").read_text(encoding="utf-8"), "toml")
    (tmp_path / "turnkeeper.toml").write_text(example)
    values = config_file.read(tmp_path / "turnkeeper.toml", settings.Settings.model_fields).values
    chosen = settings.Settings(**values)
    assert (chosen.lease, chosen.exporter, chosen.reflection) == (timedelta(seconds=10), "prometheus", False)
    assert len(values) == 7


def test_classes_outcomes_and_context_of_tools() -> None:
    classes = table(TOOLS, "class", "meaning", "by default", "after a lost server")
    assert [row[0] for row in classes] == [tool_class.value for tool_class in ToolClass]
    assert [row[2] for row in classes] == ["runs", "asks", "asks", "is never offered, nor run"]
    assert ["starts again" in row[3] and "never" not in row[3] for row in classes] == [
        tool_class.may_start_again for tool_class in ToolClass
    ]
    assert [row[0] for row in table(TOOLS, "outcome", "it ran", "meaning")] == [
        outcome.value for outcome in ToolOutcome
    ]
    assert [row[0] for row in table(TOOLS, "ToolContext", "meaning")] == [field.name for field in fields(ToolContext)]


def test_the_sample_tools() -> None:
    specs = {spec.name: spec.tool_class.value for spec in PythonTools(installed()).specs()}
    rows = {row[0]: row[1] for row in table(TOOLS, "tool", "class", "what it does")}
    assert rows.items() <= specs.items()
    assert {function for function in vars(samples) if hasattr(vars(samples)[function], "__turnkeeper_tool__")} == set(
        rows
    )


def kib(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def test_the_limits() -> None:
    options = dict(server.OPTIONS)
    send = validation.RULES["SendMessageRequest"]
    answer = inspect.signature(OpenAIModel.connect).parameters["max_answer_bytes"].default
    assert {row[0]: row[1] for row in table(reference("limits"), "what", "limit", "beyond it")} == {
        "a request, a response": kib(options["grpc.max_receive_message_length"]),
        "text of a message": kib(chat.TEXT_BYTES),
        "parts of a message": str(send["content"].max_items),
        "response_schema_json": f"{send['response_schema_json'].max_length:,} characters",
        "a model's answer, tool calls included": kib(answer),
        "tool calls of one answer": f"{message.MOST_CALLS:,}",
        "what a server sends beside a message with tool calls": kib(beside.MOST_BESIDE),
        "tokens of one model call": f"{message.MOST_TOKENS:,}",
        "arguments of a tool call": kib(toolbox.ARGUMENTS_BYTES),
        "result of a tool": kib(results.RESULT_BYTES),
        "tools that a message brings": f"{send['client_tools'].max_items}, {kib(client_tools.TOOLS_BYTES)} in all",
        "the schema of a tool that a message brings": f"{untrusted_schema.MOST_PARTS:,} parts",
        "JSON: schemas, arguments, results": f"{json_text.MOST_LEVELS} levels, no number that a float cannot hold",
        "threads of plain tools": f"{threads.MOST_THREADS}; a tool has no more than are free, an agent's tools twice "
        "as many",
        "a result that a client hands in": kib(results.RESULT_BYTES),
        "messages that wait in a session's queue": str(message_rules.QUEUE_LIMIT),
        "calls that change one session at once, on one replica": f"{session_lines.MOST_CALLERS}, each "
        f"{session_lines.PATIENCE_S:g} s in line",
        "an id of yours, request_id": f"{send['request_id'].max_length} characters",
        "states of a list, update_mask": f"{validation.RULES['ListSessionsRequest']['states'].max_items} entries",
        "arrays and objects in one JSON text": f"{json_text.MOST_BRACKETS:,}",
        "a conversation that a model is sent": f"{openai_request.MOST_CHARACTERS >> 20} Mi characters",
        "title": f"{validation.RULES['CreateSessionRequest']['title'].max_length} characters",
        "title made from the first message": "80 characters",
        "labels": f"{validation.RULES['CreateSessionRequest']['labels'].max_items}, each key and value 128 characters",
        "metadata": f"{kib(session_fields.METADATA_BYTES)} as JSON",
        "reason of EndSession": f"{validation.RULES['EndSessionRequest']['reason'].max_length:,} characters",
        "reason of DecideApproval": f"{validation.RULES['DecideApprovalRequest']['reason'].max_length:,} characters",
        "reason of FreezeAdmission": f"{validation.RULES['FreezeAdmissionRequest']['reason'].max_length:,} characters",
        "turns that one CancelTurns cancels": f"{operations.MOST_CANCELLED:,}",
        "freezes of a tenant": f"{operations.MOST_FREEZES:,}",
        "delegations that a person gives": f"{delegations.MOST_GIVEN}",
        "delegations that a person receives": f"{delegations.MOST_RECEIVED:,}",
        "a page": f"{page_tokens.MAX_SIZE} items, {kib(page_tokens.MAX_BYTES)}",
        "a wait": f"{send['wait'].max_seconds} s",
        "a wait of CancelTurn for the turn's server": f"{turns.CANCEL_WAIT:g} s",
        "a stream's response": f"{batch.BATCH_EVENTS} events, {kib(batch.BATCH_BYTES)}, one event at least",
        "details of an error": kib(status.MOST_BYTES),
        "metadata of a call": f"{kib(options['grpc.max_metadata_size'])}, at most "
        f"{kib(options['grpc.absolute_max_metadata_size'])}",
        "a token": kib(tokens.MOST_BYTES),
        "x-forwarded-client-cert": kib(forwarded.MOST_BYTES),
        "a JWK set": f"{kib(key_source.MOST_BYTES)}, {key_set.MOST_KEYS} keys",
        "connections of one replica": "the file descriptors (ulimit -n, which a server raises as far as it may) less "
        f"--concurrency and {descriptors.needed(models=0)}, and an eighth of them at least",
        "calls on one connection": f"{options['grpc.max_concurrent_streams']:,} at once",
        "calls that wait, and streams, of one replica": f"{gate.MOST_WAITING:,}",
        "the time in which a request must arrive": f"{bodies.BODY_SECONDS:g} s",
        "requests that arrive at the same time": f"{bodies.MOST_BYTES // bodies.BODY_BYTES}, of one connection "
        f"{bodies.MOST_BYTES // bodies.BODY_BYTES // 2}; fewer with less than "
        f"{(memory.PROCESS_BYTES + bodies.MOST_BYTES / bodies.MEMORY_SHARE) / 2**30:.1f} GiB of --memory",
        "requests that wait until they may arrive": f"{bodies.LINE:,}",
        "what a client may send of a request before it is read": kib(server.WINDOW_BYTES),
        "memory of a replica, as its parts count it": "--memory",
    }
    assert {changesets.REQUESTS_KEPT} == {timedelta(hours=72)}
    assert {"message"} == changesets.KEPT_WITH_SESSION


@pytest.mark.parametrize("name", validation.RULES)
def test_a_comment_and_the_rule_of_its_field_agree(name: str) -> None:
    """Generators copy comments, not options, into the code of other languages: so the comment has the rule, too."""
    file, place = generate.messages()[name]
    comments = {field.name: generate.flat(comment) for field, comment in file.fields(place)}
    for path, rule in validation.RULES[name].items():
        comment = comments.get(path, "See nested fields.")
        if not comment.startswith("See "):
            assert bool(re.search(r"Required[.:;]", comment)) == rule.required, path
            assert ("Not implemented yet" in comment) == rule.not_implemented, path
            for number in re.findall(r"[Aa]t most ([\d,]+) characters", comment):
                assert int(number.replace(",", "")) == rule.max_length, path
            for number in re.findall(r"at most (\d+) s\b", comment):
                assert int(number) == rule.max_seconds, path


def test_the_settings_page_has_the_limits_of_the_code() -> None:
    page = reference("settings")
    for limit in (setting_types.SHORTEST, setting_types.LONGEST, setting_types.LONGEST_OPERATION):
        assert settings.shown(limit) in page
    for most in (setting_types.MOST_PROCESSES, setting_types.MOST_TURNS):
        assert f"from 1 to {most:,}" in page


def test_the_settings_page_names_what_has_no_flag() -> None:
    variables = {row[0] for row in table(reference("settings"), "variable", "meaning")}
    assert {"OPENAI_API_KEY", samples.OUTBOX} <= variables
    assert f"`{CLOUD_MODEL}`" in reference("settings")
