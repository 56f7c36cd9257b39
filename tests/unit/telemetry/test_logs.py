"""A line names what it is about; it holds no content of a conversation, and no secret."""

import asyncio
import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest

from tests.cpu_time import least_cpu_seconds
from tests.unit.telemetry.calls import TRACEPARENT, Traces
from turnkeeper.telemetry import logs
from turnkeeper.telemetry.redact import Redactor

CANARY = "canary-0f3a"


class Written:
    """What the logs wrote."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def written() -> Iterator[Written]:
    written = Written()
    running = logs.start(level="DEBUG", replica="r1", secrets=[CANARY], stream=written.stream)
    yield written
    running.stop()


ours = logging.getLogger("turnkeeper.engine.execution.worker")
theirs = logging.getLogger("a.library")


def test_a_line_is_one_json_object(written: Written) -> None:
    ours.info("claimed %d turns", 3)
    (line,) = written.lines
    assert str(line.pop("time")).endswith("Z")
    assert line == {
        "level": "INFO",
        "logger": "turnkeeper.engine.execution.worker",
        "message": "claimed 3 turns",
        "replica": "r1",
    }


def test_a_line_carries_what_it_is_about(written: Written) -> None:
    with logs.about(session="s", turn="t", fence=7), logs.about(attempt=2, sequence=40):
        ours.info("step", extra={"sequence": 41, "content": CANARY})
    ours.info("after")
    line, after = written.lines
    assert {name: line.get(name) for name in logs.ABOUT if name in line} == {
        "session": "s", "turn": "t", "fence": 7, "attempt": 2, "sequence": 41, "replica": "r1",
    }  # fmt: skip
    assert "content" not in line
    assert "session" not in after


async def test_a_caller_is_named_by_the_task_of_its_call_alone(written: Written) -> None:
    """What a call starts may work for other callers later."""

    async def work() -> None:
        ours.info("started by the call")

    async def call() -> None:
        logs.name_caller("acme", "ada")
        ours.info("the call")
        await asyncio.create_task(work())
        await asyncio.to_thread(ours.info, "a thread of the call")

    await asyncio.create_task(call())
    ours.info("after")
    callers = {line["message"]: (line.get("tenant"), line.get("principal")) for line in written.lines}
    assert callers.pop("the call") == ("acme", "ada")
    assert set(callers.values()) == {(None, None)}


async def test_what_it_is_about_follows_the_task(written: Written) -> None:
    async def work(turn: str) -> None:
        with logs.about(turn=turn):
            await asyncio.sleep(0)
            ours.info(turn)

    async with asyncio.TaskGroup() as group:
        for turn in ("a", "b"):
            group.create_task(work(turn))
    assert all(line["turn"] == line["message"] for line in written.lines)


def test_a_line_inside_a_span_has_its_trace(written: Written) -> None:
    with Traces().spans.rpc("S", method="M", metadata=[("traceparent", TRACEPARENT)]):
        ours.info("inside")
    (line,) = written.lines
    assert line["trace_id"] == TRACEPARENT.split("-")[1]
    assert len(str(line["span_id"])) == 16


def test_an_exception_is_its_class_and_its_places_never_its_text(written: Written) -> None:
    try:
        try:
            raise KeyError("a person's words")
        except KeyError as error:
            raise ValueError("more words") from error
    except ValueError:
        ours.exception("the step failed")
    (line,) = written.lines
    assert line["error"] == "ValueError < KeyError"
    assert isinstance(line["stack"], list)
    assert line["stack"][-1].endswith("test_an_exception_is_its_class_and_its_places_never_its_text")
    assert "words" not in written.text
    assert __file__ not in written.text


@pytest.mark.parametrize(
    "text",
    [
        f"connecting to mongodb://user:{CANARY}@db:27017",
        f"the key is {CANARY}",
        f"x{CANARY}y",
    ],
)
def test_a_known_secret_is_hidden_wherever_it_turns_up(written: Written, text: str) -> None:
    ours.warning(text)
    ours.warning("%s", text, extra={"session": text})
    theirs.error(text)
    assert len(written.lines) == 3
    assert CANARY not in written.text


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("mongodb+srv://bob:hunter2x@db/x", "hunter2x"),
        ("redis://:hunter2x@db", "hunter2x"),
        ("Authorization: Bearer abc.def-ghi", "abc.def-ghi"),
        ("{'authorization': 'Basic aHVudGVyMng='}", "aHVudGVyMng"),
        ("using sk-proj-abcdefghijklmnop1234", "abcdefghijklmnop1234"),
        ("jwt eyJhbGciOi.eyJzdWIi.c2ln", "eyJzdWIi"),
        ("jwt eyJhbGciOiJkaXIi", "eyJhbGciOiJkaXIi"),
        ("jwe eyJhbGci.a2V5Cg.aXYxMg.dGV4dA.dGFnZw", "dGFnZw"),
        ('{"api_key": "hunter2x"}', "hunter2x"),
        ("?access_token=hunter2x&a=1", "hunter2x"),
        ("-----BEGIN RSA PRIVATE KEY-----\nhunter2x\n-----END RSA PRIVATE KEY-----", "hunter2x"),
    ],
)
def test_what_has_the_shape_of_a_secret_is_hidden(text: str, hidden: str) -> None:
    assert hidden in text
    assert hidden not in Redactor()(text)


@pytest.mark.parametrize("text", ["claimed 3 turns", "input_tokens=512", "http://127.0.0.1:4317 answers", "a@b: c"])
def test_plain_words_stay(text: str) -> None:
    assert Redactor()(text) == text


@pytest.mark.parametrize("word", ["eyJ-", "-eyJ", "eyJaaaaa-", "-----BEGIN A", "a://", "bearer ", "token ", "aa-"])
def test_a_long_text_of_beginnings_of_secrets_costs_little(word: str) -> None:
    redact, text = Redactor(), word * (10_000 // len(word))
    assert least_cpu_seconds(lambda: redact(text)) < 0.01


def test_a_long_message_is_cut() -> None:
    assert len(Redactor()("x" * 100_000)) < 2_100


def test_a_library_is_heard_from_warning_on_and_in_one_line(written: Written) -> None:
    theirs.setLevel(logging.DEBUG)
    theirs.info("chatter")
    theirs.warning("Task exception was never retrieved\nfuture: <Task exception=ValueError('words')>")
    theirs.setLevel(logging.NOTSET)
    (line,) = written.lines
    assert line["message"] == "Task exception was never retrieved"


def test_a_warning_of_a_library_is_one_line_like_any_other(written: Written) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"an option of {CANARY}", stacklevel=1)
    (line,) = written.lines
    assert (line["level"], line["logger"], line["replica"]) == ("WARNING", "py.warnings", "r1")
    assert str(line["message"]).endswith("UserWarning: an option of ***")


def test_a_line_that_cannot_be_put_together_is_still_written() -> None:
    record = logging.makeLogRecord({"name": ours.name, "msg": "%d turns", "args": ("words",)})
    assert json.loads(logs.JsonLines().format(record))["message"] == "%d turns"


def test_a_stream_that_is_gone_prints_no_arguments(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    written.stream.close()
    ours.info("said %s", "words")
    written.stream = io.StringIO()
    assert (
        capsys.readouterr().err
        == "a log record of turnkeeper.engine.execution.worker could not be written, and is lost\n"
    )


def test_a_terminal_gets_plain_lines_that_no_text_can_forge() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    running = logs.start(stream=terminal, replica="r1")
    with logs.about(session="s\n12:00 ERROR forged"):
        ours.info("two\nlines \x1b[2J")
    try:
        raise ValueError("words")
    except ValueError:
        ours.exception("failed")
    running.stop()
    first, second, place = terminal.getvalue().splitlines()
    assert first.endswith(
        r"INFO    engine.execution.worker: two\nlines \x1b[2J  session=s\n12:00 ERROR forged  replica=r1"
    )
    assert second.endswith("failed  replica=r1  error=ValueError")
    assert place.startswith("  ")
    assert "words" not in terminal.getvalue()


def test_stop_puts_everything_back() -> None:
    root = logging.getLogger()
    before = list(root.handlers), logging.getLogger("turnkeeper").level, warnings.showwarning
    running = logs.start(stream=io.StringIO(), level="DEBUG")
    assert list(root.handlers) != before[0]
    running.stop()
    assert (list(root.handlers), logging.getLogger("turnkeeper").level, warnings.showwarning) == before
