"""Unit tests open no socket and are the same in every run."""

import socket
from typing import NoReturn

import pytest
from hypothesis import settings

settings.register_profile("unit", max_examples=40, deadline=None, derandomize=True, database=None)
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs a socket belongs into tests/integration."""

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("a unit test opens a socket")

    for name in ("bind", "connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
