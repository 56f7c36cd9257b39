"""A script file is read whole, or refused with the place of what is wrong."""

from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import pytest

from turnkeeper.model.script import Reply, Script, ScriptedCall, ScriptedFailure, ScriptError, TokenCount
from turnkeeper.model.script_file import ECHO, duration, load_script, parse_script

EVERYTHING = """
models = ["a", "b"]

[[reply]]
match = "(?i)weather in (?P<city>\\\\w+)"
after_tools = 0
times = 2
every = 3
text = "Let me see."
chunk = 3
delay = "5ms"
first_delay = 0.5
tool_calls = [
    { name = "get_weather", arguments = { city = "{city}" } },
    { name = "broken", arguments = "{", id = "x" },
]
finish_reason = "tool_calls"
usage = { input_tokens = 7, output_tokens = 3 }
bytes_per_write = 2

[[reply]]
fail = "rate_limit"
retry_after = 2
headers = { x-request-id = "1" }
usage = false

[[reply]]
fail = "cut"
fail_after = 2
"""


def test_every_key() -> None:
    assert parse_script(EVERYTHING) == Script(
        models=("a", "b"),
        replies=(
            Reply(
                match=r"(?i)weather in (?P<city>\w+)",
                after_tools=0,
                times=2,
                every=3,
                text="Let me see.",
                chunk=3,
                delay=timedelta(milliseconds=5),
                first_delay=timedelta(seconds=0.5),
                tool_calls=(
                    ScriptedCall(name="get_weather", arguments='{"city":"{city}"}', escape=True),
                    ScriptedCall(name="broken", arguments="{", call_id="x"),
                ),
                finish_reason="tool_calls",
                usage=TokenCount(input_tokens=7, output_tokens=3),
                bytes_per_write=2,
            ),
            Reply(fail=ScriptedFailure.RATE_LIMIT, retry_after="2", headers={"x-request-id": "1"}, usage=False),
            Reply(fail=ScriptedFailure.CUT, fail_after=2),
        ),
    )
    assert all(field.name in EVERYTHING for field in fields(Reply))


def test_the_echo_is_a_script() -> None:
    assert len(parse_script(ECHO).replies) == 2


@pytest.mark.parametrize("how", list(ScriptedFailure))
def test_every_failure_can_be_written(how: ScriptedFailure) -> None:
    assert parse_script(f'[[reply]]\nfail = "{how}"').replies[0].fail is how


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "s.toml: reply: there must be at least one"),
        ("reply = 1", "s.toml: reply: must be a list"),
        ("reply = [1]", "s.toml: reply 1: must be a table"),
        ("[[reply]\n", "s.toml: is not TOML"),
        ("models = [1]\n[[reply]]", "s.toml: models: must be text"),
        ("[[reply]]\n[[reply]]\ntxet = 'a'", "s.toml: reply 2: txet: there is no such key; did you mean text?"),
        ("[[reply]]\nzzz = 'a'", "known keys: match, after_tools"),
        ("[[reply]]\ntext = 1", "reply 1: text: must be text"),
        ("[[reply]]\nchunk = 0", "chunk: must be a whole number of at least 1"),
        ("[[reply]]\nafter_tools = true", "after_tools: must be a whole number of at least 0"),
        ("[[reply]]\ntimes = 0", "times: must be"),
        ("[[reply]]\nmatch = '('", "match: is not a regular expression"),
        ("[[reply]]\ndelay = 'soon'", "delay: must be a duration"),
        ("[[reply]]\nfail = 'explode'", "fail: must be one of rate_limit, quota,"),
        ("[[reply]]\nfail_after = 1", "fail_after: needs a fail that strikes in a stream: bad_json, comments"),
        ("[[reply]]\nfail = 'refuse'\nfail_after = 1", "fail_after: needs"),
        ("[[reply]]\nretry_after = 1", "retry_after: needs"),
        ("[[reply]]\nfail = 'rate_limit'\nretry_after = true", "retry_after: must be text"),
        ("[[reply]]\nheaders = 'x'", "headers: must be a table"),
        ('[[reply]]\nheaders = { a = "x\\r\\ny" }', "headers: must hold printable characters"),
        ("[[reply]]\nusage = 3", "usage: must be a table"),
        ("[[reply]]\nusage = { tokens = 3 }", "usage: tokens: there is no such key"),
        ("[[reply]]\ntool_calls = [{}]", "tool_calls: name: each call needs one"),
        ("[[reply]]\ntool_calls = [{ name = 'a', arguments = 1 }]", "arguments: must be a table, or the text"),
        ("[[reply]]\ntool_calls = { name = 'a' }", "tool_calls: must be a list"),
    ],
)
def test_an_error_names_its_place(text: str, complaint: str) -> None:
    with pytest.raises(ScriptError) as caught:
        parse_script(text, source="s.toml")
    assert complaint in str(caught.value)
    assert str(caught.value).startswith("s.toml: ")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"none\.toml: cannot be read: No such file"):
        load_script(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"\xe9")
    with pytest.raises(ScriptError, match=r"latin\.toml: cannot be read: it is not UTF-8"):
        load_script(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("value", "seconds"), [("5ms", 0.005), ("1.5s", 1.5), ("2m", 120), ("10 s", 10), (3, 3), (0.25, 0.25), (0, 0)]
)
def test_durations(value: object, seconds: float) -> None:
    assert duration(value) == timedelta(seconds=seconds)


@pytest.mark.parametrize("value", ["", "5", "-1s", "1s2", -1, True, None, float("inf"), float("nan"), 1e9])
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ScriptError, match="must be a duration"):
        duration(value)
