"""`turnkeeper serve` as a program: what it writes to standard error, and what it imports."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.collector import collector

NO_DATABASE = (
    "--mongodb-uri",
    "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=100",
    "--operation-time",
    "100ms",
    "--database-wait",
    "0s",
)


def serve(*flags: str, folder: Path, **variables: str) -> tuple[int, list[str]]:
    """Runs a server that has no database. Returns its exit status, and its lines on standard error."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    run = subprocess.run(
        [str(Path(sys.executable).with_name("turnkeeper")), "serve", *NO_DATABASE, *flags],
        env={**kept, "OPENAI_BASE_URL": "http://127.0.0.1:1/v1", **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return run.returncode, run.stderr.splitlines()


@pytest.mark.parametrize(
    ("exporter", "variable", "value", "reason"),
    [
        ("none", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many", "LIMIT must be a non-negative integer but got many"),
        (
            "otlp",
            "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
            "many",
            "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must be a non-negative integer",
        ),
        ("otlp", "OTEL_BSP_MAX_QUEUE_SIZE", "1", "max_export_batch_size must be less than or equal to max_queue_size"),
        ("otlp", "OTEL_METRICS_EXEMPLAR_FILTER", "bogus", "Unknown exemplar filter 'bogus'"),
        ("otlp", "OTEL_EXPORTER_OTLP_COMPRESSION", "zip", 'Invalid value "zip"'),
        ("otlp", "OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1", "OTEL_EXPORTER_OTLP_ENDPOINT is not an address"),
    ],
)
def test_a_wrong_variable_of_opentelemetry_is_one_sentence_where_it_counts(
    tmp_path: Path, exporter: str, variable: str, value: str, reason: str
) -> None:
    status, lines = serve("--exporter", exporter, folder=tmp_path, **{variable: value})
    assert status == 2
    (sentence,) = (line for line in lines if not line.startswith("{"))
    assert sentence.startswith("turnkeeper serve: ")
    assert reason in sentence


def test_everything_else_on_standard_error_is_a_log_line(tmp_path: Path) -> None:
    """Also what libraries warn of while they are imported, and what gRPC reports of a collector that speaks no TLS."""
    with collector() as received:
        variables = {
            "OTEL_RESOURCE_ATTRIBUTES": "garbage",
            "OTEL_EXPORTER_OTLP_HEADERS": "a-secret-without-a-name",
            "OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint.replace("http://", "https://"),
            "OTEL_EXPORTER_OTLP_TIMEOUT": "0.5",
        }
        status, lines = serve("--exporter", "otlp", folder=tmp_path, **variables)
    assert status == 2
    *logged, last = lines
    messages = [json.loads(line)["message"] for line in logged]
    assert last.startswith("turnkeeper serve: no database answers")
    for part in ("resource attribute", "Header format invalid"):
        assert [message for message in messages if part in message]
    assert not [message for message in messages if "a-secret" in message]


@pytest.mark.parametrize(("processes", "missing"), [("1", "2>&-"), ("2", "<&- >&- 2>&-")])
def test_a_server_starts_without_standard_streams(tmp_path: Path, processes: str, missing: str) -> None:
    """No socket of its own becomes standard error."""
    turnkeeper = Path(sys.executable).with_name("turnkeeper")
    command = shlex.join([str(turnkeeper), "serve", *NO_DATABASE, "--processes", processes])
    variables = {**os.environ, "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}
    run = subprocess.run(["sh", "-c", f"{command} {missing}"], env=variables, cwd=tmp_path, check=False, timeout=60)
    assert run.returncode == 2


def test_an_output_that_takes_nothing_ends_no_server() -> None:
    """Such as a full disk, or a pipe whose reader has left."""
    program = """
import sys
from turnkeeper import bootstrap, standard_output
standard_output.announce("127.0.0.1:1", sys.stdout)
bootstrap.exit_at_once()
"""
    with Path("/dev/full").open("wb") as full:
        run = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, check=False, timeout=60
        )
    assert (run.returncode, run.stderr) == (0, b"")


def test_the_supervisor_and_its_processes_import_no_file_of_the_working_directory(tmp_path: Path) -> None:
    """And a replica's name may begin like a flag."""
    for module in ("secrets", "uvloop", "telemetry"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('imported from the working directory')")
    status, lines = serve("--processes", "2", "--replica=-x", folder=tmp_path)
    assert status == 2
    assert not [line for line in lines if "working directory" in line]
    assert lines[-1].startswith("turnkeeper serve: no database answers")
