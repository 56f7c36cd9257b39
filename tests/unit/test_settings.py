"""Settings: the flag wins, then our variable, then the other one; a bad value is named."""

import argparse
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import pytest

from turnkeeper import settings
from turnkeeper.settings import SettingError, Settings, flag_of, variables_of

KNOBS = {each.name: each for each in fields(Settings)}


def load(*flags: str, **variables: str) -> Settings:
    parser = argparse.ArgumentParser(exit_on_error=False)
    settings.add_arguments(parser)
    return settings.load(parser.parse_args(flags), variables)


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
        ([], {"TURNKEEPER_AGENTS": "my.toml"}, "agents", Path("my.toml")),
        (["--agents", "my.toml"], {}, "agents", Path("my.toml")),
        (["--data-dir", "/data"], {}, "data_dir", Path("/data")),
        (["--drain-delay", "0s"], {}, "drain_delay", timedelta()),
        (["--poll", "250ms"], {}, "poll", timedelta(milliseconds=250)),
        (["--rotation", "1.5h"], {}, "rotation", timedelta(minutes=90)),
        (["--rotation", "10m"], {}, "rotation", timedelta(minutes=10)),
        ([], {"TURNKEEPER_NO_SUCH_THING": "1"}, "lease", timedelta(seconds=30)),
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
        (["--lease", "0s"], {}, "--lease must be more than 0"),
        (["--port", "http"], {}, "--port is 'http'; it must be a whole number"),
        ([], {"TURNKEEPER_PORT": "1.5"}, "TURNKEEPER_PORT is '1.5'; it must be a whole number"),
        (["--port", "70000"], {}, "--port must be from 0 to 65535"),
        (["--port", "-1"], {}, "--port must be from 0 to 65535"),
        (["--prometheus-port", "70000"], {}, "--prometheus-port must be from 0 to 65535"),
        (["--concurrency", "0"], {}, "--concurrency must be at least 1"),
        (["--processes", "0"], {}, "--processes must be at least 1"),
        ([], {"TURNKEEPER_EMBEDDED": "maybe"}, "TURNKEEPER_EMBEDDED is 'maybe'; it must be true or false"),
        (["--exporter", "carrier-pigeon"], {}, "--exporter is 'carrier-pigeon'; it can be none, console, otlp"),
        ([], {"TURNKEEPER_IDENTITY": "jwt"}, "--identity is 'jwt'; it can be none"),
        (["--log-level", "loud"], {}, "--log-level is 'loud'; it can be DEBUG, INFO, WARNING, ERROR"),
    ],
)
def test_a_bad_value_is_named_with_what_it_can_be(flags: list[str], variables: dict[str, str], complaint: str) -> None:
    with pytest.raises(SettingError) as raised:
        load(*flags, **variables)
    assert complaint in str(raised.value)


def test_another_process_reads_the_same_from_its_environment() -> None:
    """Whatever else is set there."""
    odd = Settings(
        mongodb_uri="mongodb://ada:p@h/?a=b",
        embedded=True,
        reflection=False,
        data_dir=Path("/a b"),
        agents=Path("my.toml"),
        processes=3,
        lease=timedelta(microseconds=1_234_567),
        drain_delay=timedelta(),
        purge_after=timedelta(days=36_500, microseconds=1),
    )
    before = {
        "TURNKEEPER_MODEL": "another",
        "MONGODB_URI": "mongodb://another",
        "OPENAI_MODEL": "b",
        "PATH": "/bin",
    }
    for each in (odd, Settings()):
        variables = settings.environment(each, before)
        assert load(**variables) == each
        assert variables["PATH"] == "/bin"


@pytest.mark.parametrize("name", KNOBS)
def test_every_setting_has_a_flag_a_variable_and_a_sentence(name: str) -> None:
    each = KNOBS[name]
    assert flag_of(each) == f"--{name.replace('_', '-')}"
    assert variables_of(each)[0] == f"TURNKEEPER_{name.upper()}"
    assert each.metadata["help"]
    assert not each.metadata["help"].endswith(".")


def test_the_help_shows_variables_and_defaults() -> None:
    parser = argparse.ArgumentParser(prog="turnkeeper serve", formatter_class=argparse.RawDescriptionHelpFormatter)
    settings.add_arguments(parser)
    shown = " ".join(parser.format_help().split())
    for name, each in KNOBS.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert variables_of(each)[0] in shown
    for example in ("TURNKEEPER_LEASE; 30s]", "TURNKEEPER_POLL; 500ms]", "TURNKEEPER_ROTATION; 10m]", "± 10 %"):
        assert example in shown
