"""Settings: flags win over variables, variables over the file, the file over defaults; a wrong value is named."""

import argparse
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
from pydantic import ValidationError

from turnkeeper import config_file, settings, settings_flags, settings_sources, sizes
from turnkeeper.setting_types import LEAST_MEMORY
from turnkeeper.settings import Settings, flag_of, variables_of
from turnkeeper.sizes import Size
from turnkeeper.start_errors import SettingError
from turnkeeper.supervision.options import SupervisorOptions

SECRET = "mongodb://ada:a-password@host/"


def load(*flags: str, **variables: str) -> Settings:
    parser = argparse.ArgumentParser(exit_on_error=False)
    settings_flags.add_arguments(parser)
    with patch.dict(os.environ, variables, clear=True):
        return settings_sources.load(parser.parse_args(flags))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "turnkeeper.toml"


def test_without_anything_the_defaults_count() -> None:
    assert load() == Settings()


@pytest.mark.parametrize(
    ("flags", "variables", "name", "value"),
    [
        (["--lease", "5s"], {"TURNKEEPER_LEASE": "9s"}, "lease", timedelta(seconds=5)),
        ([], {"TURNKEEPER_LEASE": "9s"}, "lease", timedelta(seconds=9)),
        (["--mongodb-uri", "a"], {"TURNKEEPER_MONGODB_URI": "b", "MONGODB_URI": "c"}, "mongodb_uri", "a"),
        ([], {"TURNKEEPER_MONGODB_URI": "b", "MONGODB_URI": "c"}, "mongodb_uri", "b"),
        ([], {"MONGODB_URI": "c"}, "mongodb_uri", "c"),
        ([], {"TURNKEEPER_MONGODB_URI": "", "MONGODB_URI": "c"}, "mongodb_uri", "c"),
        ([], {"OPENAI_BASE_URL": "http://x/v1"}, "openai_base_url", "http://x/v1"),
        ([], {"OPENAI_MODEL": "m"}, "model", "m"),
        (["--embedded"], {"TURNKEEPER_EMBEDDED": "false"}, "embedded", True),
        (["--no-embedded"], {"TURNKEEPER_EMBEDDED": "true"}, "embedded", False),
        ([], {"TURNKEEPER_EMBEDDED": " Yes "}, "embedded", True),
        ([], {"TURNKEEPER_REFLECTION": "0"}, "reflection", False),
        (["--port", "0"], {}, "port", 0),
        (["--host", "::1"], {}, "host", "[::1]"),
        (["--host", "[::1]"], {}, "host", "[::1]"),
        (["--host", "localhost"], {}, "host", "localhost"),
        ([], {"TURNKEEPER_AGENTS": "my.toml"}, "agents", Path("my.toml")),
        (["--agents", "my.toml"], {}, "agents", Path("my.toml")),
        (["--data-dir", "/data"], {}, "data_dir", Path("/data")),
        (["--drain-delay", "0s"], {}, "drain_delay", timedelta()),
        (["--model", "None"], {}, "model", "None"),
        (["--mongodb-uri", "mongodb://a,b/?x=[1]"], {}, "mongodb_uri", "mongodb://a,b/?x=[1]"),
        (["--model", ""], {"TURNKEEPER_MODEL": "m"}, "model", ""),
        ([], {"turnkeeper_lease": "9s"}, "lease", timedelta(seconds=7)),
        ([], {"HOST": "10.0.0.1", "MODEL": "m"}, "model", ""),
        (["--memory", "2GiB"], {"TURNKEEPER_MEMORY": "1GiB"}, "memory", 2 << 30),
        ([], {"TURNKEEPER_MEMORY": "1.5GiB"}, "memory", 3 << 29),
        (["--poll", "250ms"], {}, "poll", timedelta(milliseconds=250)),
        (["--rotation", "1.5h"], {}, "rotation", timedelta(minutes=90)),
        (["--rotation", "10m"], {}, "rotation", timedelta(minutes=10)),
        ([], {"TURNKEEPER_NO_SUCH_THING": "1"}, "lease", timedelta(seconds=7)),
    ],
)
def test_what_counts(flags: list[str], variables: dict[str, str], name: str, value: object) -> None:
    assert getattr(load(*flags, **variables), name) == value


@pytest.mark.parametrize(
    ("flags", "variables", "complaint"),
    [
        (["--lease", "5"], {}, "--lease is '5'; it must be a duration such as 250ms, 30s, 10m, 1h or 7d"),
        ([], {"TURNKEEPER_LEASE": "soon"}, "TURNKEEPER_LEASE is 'soon'; it must be a duration"),
        (["--lease=-5s"], {}, "--lease is '-5s'; it must be a duration"),
        (["--lease", "99999999999999999999h"], {}, "--lease is '99999999999999999999h'; it must be a duration"),
        (["--lease", "0s"], {}, "--lease must be from 1ms to 36525d"),
        (["--lease", "0.001ms"], {}, "--lease must be from 1ms to 36525d"),
        (["--loop-patience", "3s"], {}, "--loop-patience must be at least half of --lease: leases that young"),
        (["--purge-after", "999999d"], {}, "--purge-after must be from 1ms to 36525d"),
        (["--keep-events", "999999d"], {}, "--keep-events must be at most 36525d"),
        (["--operation-time", "2h"], {}, "--operation-time must be from 1ms to 60m"),
        (["--memory", "512"], {}, "--memory is '512'; it must be a size such as 512MiB or 2GiB"),
        (["--memory", "255MiB"], {}, "--memory must be at least 256MiB"),
        (["--port", "http"], {}, "--port is 'http'; it must be a whole number"),
        ([], {"TURNKEEPER_PORT": "1.5"}, "TURNKEEPER_PORT is '1.5'; it must be a whole number"),
        (["--port", "70000"], {}, "--port must be from 0 to 65535"),
        (["--port", "-1"], {}, "--port must be from 0 to 65535"),
        (["--prometheus-port", "70000"], {}, "--prometheus-port must be from 0 to 65535"),
        (["--concurrency", "0"], {}, "--concurrency must be from 1 to 100000"),
        (["--concurrency", "9" * 30], {}, "--concurrency must be from 1 to 100000"),
        (["--processes", "0"], {}, "--processes must be from 1 to 1024"),
        (["--processes", "1025", "--prometheus-port", "0"], {}, "--processes must be from 1 to 1024"),
        ([], {"TURNKEEPER_EMBEDDED": "maybe"}, "TURNKEEPER_EMBEDDED is 'maybe'; it must be true or false"),
        (["--exporter", "carrier-pigeon"], {}, "--exporter is 'carrier-pigeon'; it can be none, console, otlp"),
        ([], {"TURNKEEPER_IDENTITY": "jwts"}, "TURNKEEPER_IDENTITY is 'jwts'; it can be none, mtls, jwt, mtls+jwt, "),
        (["--log-level", "loud"], {}, "--log-level is 'loud'; it can be DEBUG, INFO, WARNING, ERROR"),
        (["--database", ""], {}, "--database must not be empty"),
        (
            ["--database", "a b"],
            {},
            '--database must be at most 63 bytes without spaces, and without any of . " $ / \\',
        ),
        (["--database", "a.b"], {}, "--database must be at most 63 bytes"),
        (["--database", "é" * 32], {}, "--database must be at most 63 bytes"),
        (["--database", "local"], {}, "--database must not be admin, config or local"),
        (["--host", "0.0.0.0"], {}, "--host must be a loopback address such as 127.0.0.1"),
        ([], {"TURNKEEPER_HOST": "example.com"}, "TURNKEEPER_HOST must be a loopback address"),
        (["--data-dir", ""], {}, "--data-dir must not be empty"),
        (["--agents", ""], {}, "--agents must not be empty"),
        ([], {"TURNKEEPER_MODEL": "\udcff"}, "TURNKEEPER_MODEL must be UTF-8 text without NUL characters"),
        (["--host", "\udcff"], {}, "--host must be UTF-8 text without NUL characters"),
        ([], {"TURNKEEPER_SWEEP": "0s"}, "TURNKEEPER_SWEEP must be from 1ms to 36525d"),
        (["--keep-events", "1s"], {}, "--keep-events must be 0s, or at least twice --operation-time"),
        (
            ["--prometheus-port", "65535", "--processes", "2"],
            {},
            "--processes must be at most 1 with --prometheus-port",
        ),
    ],
)
def test_a_bad_value_is_named_with_what_it_can_be(flags: list[str], variables: dict[str, str], complaint: str) -> None:
    with pytest.raises(SettingError) as raised:
        load(*flags, **variables)
    assert complaint in str(raised.value)


@pytest.mark.parametrize(
    "value",
    [
        "mongodb://ada:a-password@host/",
        "mongodb://ada:a-password-that-is-longer-than-what-a-message-shows@host/",
        "mongodb://ada:a-password/with-a-slash@host/",
        "sk-a-password-of-a-model",
    ],
)
@pytest.mark.parametrize("flag", ["--port", "--lease", "--embedded", "--exporter"])
def test_a_secret_that_stands_in_the_wrong_place_is_not_shown(file: Path, flag: str, value: str) -> None:
    name = flag.removeprefix("--")
    file.write_text(f'{name} = "{value}"')
    sources: list[tuple[list[str], dict[str, str]]] = [
        (["--config", str(file)], {}),
        ([], {f"TURNKEEPER_{name.upper()}": value}),
    ]
    if flag != "--embedded":
        sources.append(([flag, value], {}))
    for flags, variables in sources:
        with pytest.raises(SettingError) as raised:
            load(*flags, **variables)
        assert "is '" in str(raised.value)
        assert "password" not in str(raised.value)


def test_an_empty_config_flag_means_no_file(file: Path) -> None:
    file.write_text("port = 1")
    assert load("--config", "", TURNKEEPER_CONFIG=str(file)).port == 50051


def test_another_process_reads_the_same_from_its_environment() -> None:
    """Whatever else is set there."""
    odd = Settings(
        mongodb_uri="mongodb://ada:p@h/?a=b",
        embedded=True,
        reflection=False,
        data_dir=Path("/a b"),
        agents=Path("my.toml"),
        processes=3,
        memory=Size((1 << 30) + 1),
        lease=timedelta(microseconds=1_234_567),
        drain_delay=timedelta(),
        purge_after=timedelta(days=36_524, microseconds=1),
    )
    before = {
        "TURNKEEPER_MODEL": "another",
        "MONGODB_URI": "mongodb://another",
        "OPENAI_MODEL": "b",
        "PATH": "/bin",
    }
    for written in (odd, Settings()):
        variables = settings.environment(written, before)
        assert load(**variables) == written
        assert variables["PATH"] == "/bin"


def test_the_patience_with_a_blocked_loop_follows_the_lease() -> None:
    assert Settings().patience_of_loop == 1.5 * Settings().lease
    assert Settings(lease=timedelta(seconds=20)).patience_of_loop == timedelta(seconds=30)
    assert Settings(loop_patience=timedelta(seconds=9)).patience_of_loop == timedelta(seconds=9)


def test_without_memory_the_processes_share_half_of_the_machines() -> None:
    machine = sizes.of_machine()
    assert Settings().with_memory().memory == machine // 2
    shared = Settings(processes=2).with_memory()
    assert shared.memory == machine // 4
    assert load(**settings.environment(shared, {}) | {"TURNKEEPER_PROCESSES": "1"}).memory == machine // 4
    assert Settings(processes=1024, prometheus_port=0).with_memory().memory == LEAST_MEMORY
    assert Settings(memory=Size(1 << 30), processes=2).with_memory().memory == 1 << 30


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_a_flag_a_variable_and_a_sentence(name: str) -> None:
    description = Settings.model_fields[name].description
    assert flag_of(name) == f"--{name.replace('_', '-')}"
    assert variables_of(name)[0] == f"TURNKEEPER_{name.upper()}"
    assert description
    assert not description.endswith(".")


def test_the_help_shows_variables_and_defaults() -> None:
    parser = argparse.ArgumentParser(prog="turnkeeper serve", formatter_class=argparse.RawDescriptionHelpFormatter)
    settings_flags.add_arguments(parser)
    shown = " ".join(parser.format_help().split())
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in shown
        assert variables_of(name)[0] in shown
    for example in ("TURNKEEPER_LEASE; 7s]", "TURNKEEPER_POLL; 500ms]", "TURNKEEPER_ROTATION; 10m]", "± 10 %"):
        assert example in shown


def test_the_help_fits_a_terminal_and_imports_little() -> None:
    """It must be there within 300 ms."""
    program = "import sys; from turnkeeper.__main__ import main\ntry: main()\nfinally: print(*sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", program, "serve", "--help"],
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    help_text, _, modules = shown.rstrip().rpartition("\n")
    assert max(map(len, help_text.splitlines())) <= 80
    assert "argparse" in modules.split()
    assert not {"asyncio", "grpc", "openai", "pydantic_settings", "pymongo", "uvloop"} & set(modules.split())


def test_the_supervisor_reads_its_part_of_the_environment() -> None:
    """Other programs' variables, such as PORT, mean nothing to it."""
    configured = Settings(
        port=0,
        processes=3,
        replica="pod",
        prometheus_port=9000,
        health_port=0,
        health_host="0.0.0.0",
        mongodb_uri=SECRET,
        embedded=True,
        data_dir=Path("/a b"),
        local_model=True,
        openai_base_url="http://x/v1",
        log_level="DEBUG",
        log_format="json",
    )
    options = SupervisorOptions.from_environment(settings.environment(configured, {"PORT": "1", "HOST": "x"}))
    for name in SupervisorOptions.__dataclass_fields__:
        assert getattr(options, name) == getattr(configured, name)
    assert "a-password" not in f"{options}{configured}"


class TestFile:
    def test_its_values_are_between_variables_and_defaults(self, file: Path) -> None:
        file.write_text('lease = "1s"\nsweep = "1s"\npoll = "1s"\n')
        chosen = load("--config", str(file), "--lease", "3s", TURNKEEPER_LEASE="2s", TURNKEEPER_SWEEP="2s")
        seconds = [value.total_seconds() for value in (chosen.lease, chosen.sweep, chosen.poll, chosen.operation_time)]
        assert seconds == [3, 2, 1, 5]

    @pytest.mark.parametrize(
        ("line", "name", "value"),
        [
            ('lease = "250ms"', "lease", timedelta(milliseconds=250)),
            ("port = 7", "port", 7),
            ('port = "7"', "port", 7),
            ("embedded = true", "embedded", True),
            ("reflection = false", "reflection", False),
            ('reflection = "no"', "reflection", False),
            ('data_dir = "/data"', "data_dir", Path("/data")),
            ('agents = "my.toml"', "agents", Path("my.toml")),
            ('exporter = "otlp"', "exporter", "otlp"),
            ('model = "a\\u00e9"', "model", "aé"),
            ('"model" = "m"', "model", "m"),
            ('agents = ""', "agents", None),
            ('database = ""', "database", "turnkeeper"),
            ("", "port", 50051),
            ("# nothing\r\n", "port", 50051),
            ("\ufeffport = 7", "port", 7),
        ],
    )
    def test_a_key_is_a_setting(self, file: Path, line: str, name: str, value: object) -> None:
        file.write_text(line)
        assert getattr(load("--config", str(file)), name) == value

    def test_a_variable_names_it_unless_a_flag_does(self, file: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.toml"
        file.write_text("port = 1")
        other.write_text("port = 2")
        assert load(TURNKEEPER_CONFIG=str(file)).port == 1
        assert load("--config", str(other), TURNKEEPER_CONFIG=str(file)).port == 2
        assert load(TURNKEEPER_CONFIG="").port == 50051

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("\n\nlese = 1", ":3: there is no setting 'lese'; did you mean lease?"),
            ("drain-delay = '1s'", ":1: there is no setting 'drain-delay'; did you mean drain_delay?"),
            ("LEASE = '1s'", ":1: there is no setting 'LEASE'; did you mean lease?"),
            ("qqq = 1", ":1: there is no setting 'qqq'"),
            ("port = 1\n[serve]\nlease = '1s'", ":2: there is no setting 'serve'"),
            ("serve.lease = '1s'", ":1: there is no setting 'serve'"),
            ('model = """\nlese = 1\n"""\nlese = 1', ":4: there is no setting 'lese'; did you mean lease?"),
            ("config = 'other.toml'", ":1: there is no setting 'config'"),
            ("# a\nlease = 'soon'", ":2: lease is 'soon'; it must be a duration such as 250ms, 30s, 10m, 1h or 7d"),
            ("lease = 30", ":1: lease is 30; it must be a duration such as"),
            ("lease = '0s'", ":1: lease must be from 1ms to 36525d"),
            ("port = 1\nkeep_events = '1s'", ":2: keep_events must be 0s, or at least twice --operation-time"),
            ("processes = 2\nprometheus_port = 65535", ":1: processes must be at most 1 with --prometheus-port 65535"),
            ("host = '::'", ":1: host must be a loopback address"),
            ("database = 'a b'", ":1: database must be at most 63 bytes without spaces"),
            ("processes = 99999999999999999999", ":1: processes must be from 1 to 1024"),
            ("\nport = true", ":2: port is true; it must be a whole number"),
            ("port = 1.5", ":1: port is 1.5; it must be a whole number"),
            ("port = 70000", ":1: port must be from 0 to 65535"),
            ("port = [1]", ":1: port is [1]; it must be a whole number"),
            ("embedded = 1", ":1: embedded is 1; it must be true or false"),
            ("embedded = 'maybe'", ":1: embedded is 'maybe'; it must be true or false"),
            ("model = ['a', 'b']", ":1: model must be text in quotes"),
            ("data_dir = 5", ":1: data_dir must be text in quotes"),
            ("agents = ['a']", ":1: agents must be text in quotes"),
            ("mongodb_uri = ['mongodb://ada:a-password@host']", ":1: mongodb_uri must be text in quotes"),
            ("replica = 'a\\u0000'".replace("'", '"'), ":1: replica must be UTF-8 text without NUL characters"),
            ("exporter = 'pigeon'", ":1: exporter is 'pigeon'; it can be none, console, otlp, prometheus"),
            ("exporter = 1", ":1: exporter is 1; it can be none, console, otlp, prometheus"),
            (f"lease = '{'x' * 500}'", f":1: lease is '{'x' * 39}…; it must be a duration"),
            ("\nport 1", ":2: this is not TOML: Expected '=' after a key in a key/value pair"),
            ("port = 1\nport = 2", ":2: this is not TOML: Cannot overwrite a value"),
            ("port = ", ":1: this is not TOML: Invalid value"),
            ("model = '", ":1: this is not TOML: "),
            ('port = 1\nmodel = """\n', ":3: this is not TOML: "),
            ("\nx = " + "[" * 5000, ":2: this is not TOML: it is nested too deeply"),
            ("\nx = " + "[" * 5000 + "]" * 5000, ":2: this is not TOML: it is nested too deeply"),
            ("port = 1\nlease = " + "[" * 99 + "]" * 99, ":2: this is not TOML: it is nested too deeply"),
            ("port = 1\nlease" + ".a" * 5000 + " = 1", ":2: this is not TOML: it is nested too deeply"),
            ("[" + "a." * 5000 + "a]", ":1: this is not TOML: it is nested too deeply"),
            ("lease = '1s'\nport = " + "9" * 5000, ":2: this is not TOML: a whole number has too many digits"),
            ("lease = 0x" + "f" * 9000, ":1: this is not TOML: a whole number has too many digits"),
        ],
    )
    def test_a_mistake_is_named_with_its_line(self, file: Path, text: str, complaint: str) -> None:
        file.write_text(text)
        with pytest.raises(SettingError) as raised:
            load("--config", str(file))
        assert f"{file}{complaint}" in str(raised.value)
        assert "\n" not in str(raised.value)
        assert "password" not in str(raised.value)

    def test_a_mistake_that_a_variable_covers_is_none(self, file: Path) -> None:
        """The value is not used. A key that no setting has is a mistake in any case."""
        file.write_text("lease = 'soon'")
        assert load("--config", str(file), TURNKEEPER_LEASE="1s").lease == timedelta(seconds=1)

    def test_a_file_that_cannot_be_read(self, file: Path, tmp_path: Path) -> None:
        reasons: list[str] = []
        large = b"#" * (config_file.MAX_BYTES + 1)
        for content in (None, b"\xff", large):
            if content is not None:
                file.write_bytes(content)
            with pytest.raises(SettingError) as raised:
                load("--config", str(file))
            reasons.append(str(raised.value).removeprefix(f"the settings file {file} cannot be read: "))
        assert reasons == ["No such file or directory", "it is not UTF-8 text", "it has more than 65,536 bytes"]
        with pytest.raises(SettingError, match="cannot be read: Is a directory"):
            load("--config", str(tmp_path))
        with pytest.raises(SettingError, match="cannot be read: it has more than"):
            load("--config", "/dev/zero")

    def test_a_file_that_others_own(self, file: Path) -> None:
        file.touch(mode=0)
        if os.access(file, os.R_OK):  # root reads everything
            assert load("--config", str(file)) == Settings()
        else:
            with pytest.raises(SettingError, match="cannot be read: Permission denied"):
                load("--config", str(file))


def test_settings_of_the_wrong_kind_show_no_value() -> None:
    with pytest.raises(ValidationError) as raised:
        Settings(mongodb_uri=[SECRET])  # type: ignore[arg-type]
    assert "a-password" not in str(raised.value)
