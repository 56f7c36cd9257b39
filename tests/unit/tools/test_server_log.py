"""No server can fill the log."""

import time

import pytest

from turnkeeper.tools.server_log import MOST_LINES, PERIOD, ServerLog


def test_lines_are_left_out_for_a_while_once_there_were_many(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log = ServerLog("odd")
    for number in range(1_000):
        log.write(f": its list is another one, the {number}th")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == MOST_LINES
    assert lines[0] == "the tool server odd: its list is another one, the 0th"
    assert lines[-1].endswith("; more lines about it are left out for 10 minutes")
    now += PERIOD
    log.write(" is down")
    assert caplog.records[-1].getMessage() == "the tool server odd is down"
