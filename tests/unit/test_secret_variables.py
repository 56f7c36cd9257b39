"""Secrets in files that variables name."""

import os
from pathlib import Path

import pytest

from tests.unit.test_settings import load
from turnkeeper.secret_variables import MOST_BYTES, value_of
from turnkeeper.settings import SECRETS, Settings, environment
from turnkeeper.start_errors import SettingError

URI = "mongodb://ada:a-password@host/"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "uri"
    path.write_text(f"{URI}\n")
    return path


def test_the_settings_that_may_hold_a_password_can_be_in_a_file(secret: Path) -> None:
    assert set(SECRETS) == {"jwt_keys", "mongodb_uri", "openai_base_url", "otlp_endpoint"}
    for variable in ("TURNKEEPER_MONGODB_URI_FILE", "MONGODB_URI_FILE"):
        assert load(**{variable: str(secret)}).mongodb_uri == URI
    assert load("--mongodb-uri", "flag", MONGODB_URI_FILE=str(secret)).mongodb_uri == "flag"
    assert load(MONGODB_URI="variable", TURNKEEPER_MONGODB_URI_FILE=str(secret)).mongodb_uri == "variable"


def test_a_file_wins_over_the_file_of_settings(secret: Path, tmp_path: Path) -> None:
    config = tmp_path / "turnkeeper.toml"
    config.write_text('mongodb_uri = "file"\n')
    assert load("--config", str(config), MONGODB_URI_FILE=str(secret)).mongodb_uri == URI


def test_both_variables_are_a_mistake(secret: Path) -> None:
    with pytest.raises(SettingError, match="MONGODB_URI and MONGODB_URI_FILE are both set: keep one of them"):
        load(MONGODB_URI=URI, MONGODB_URI_FILE=str(secret))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"\xff", "it is not UTF-8 text"),
        (b"x" * (MOST_BYTES + 1), "it has more than"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingError, match=f"OPENAI_API_KEY_FILE names .*/key, which cannot be read: {reason}"):
        value_of({"OPENAI_API_KEY_FILE": str(path)}, "OPENAI_API_KEY")


def test_a_value_of_a_file_that_cannot_be_is_named_by_its_variable(tmp_path: Path) -> None:
    path = tmp_path / "uri"
    path.write_bytes(b"a\0b")
    with pytest.raises(SettingError, match="MONGODB_URI_FILE must be UTF-8 text without NUL characters"):
        load(MONGODB_URI_FILE=str(path))


def test_a_key_and_a_missing_one(secret: Path) -> None:
    assert value_of({"KEY_FILE": str(secret)}, "KEY") == URI
    assert value_of({"KEY": "plain"}, "KEY") == "plain"
    assert value_of({}, "KEY") == ""


def test_the_processes_of_a_supervisor_get_the_value_and_not_the_file(secret: Path) -> None:
    passed = environment(Settings(mongodb_uri=URI), {**os.environ, "MONGODB_URI_FILE": str(secret), "OTHER_FILE": "x"})
    assert passed["TURNKEEPER_MONGODB_URI"] == URI
    assert "MONGODB_URI_FILE" not in passed
    assert passed["OTHER_FILE"] == "x"
