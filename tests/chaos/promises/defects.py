"""Checks that no answer is a defect of the service."""

import re
from typing import Final

from tests.chaos.calls import DEFECTS
from tests.chaos.history import Finding, History

BROKEN_CONNECTION: Final = re.compile(r"Stream removed|(Received )?RST_STREAM .*")
"""The messages with which gRPC's client ends a call as INTERNAL or UNKNOWN because its connection broke."""


def no_answer_is_a_defect(history: History) -> Finding:
    """Falsified by a call or a stream that ended INTERNAL or UNKNOWN, unless gRPC's client made that status itself of a
    connection that broke: the one cause that the documents name beside a proxy, which these runs do not have.
    """
    finding = Finding()
    for call in history.tries:
        if call.answer:
            how = f"{call.answer['status']} {call.answer.get('reason', '')}".strip().removeprefix("NOT_")
            message = call.answer.get("message", "")
            name = f"{call.session}: {call.rpc} (call {call.number})"
            finding.expect(not _is_defect(how, message), f"{name} was answered {how}: {message}")
    for chain in history.chains:
        for how, message in chain.ends:
            name = f"{chain.session}: a stream of reader {chain.number}"
            finding.expect(not _is_defect(how, message), f"{name} ended {how}: {message}")
    return finding


def _is_defect(how: str, message: str) -> bool:
    """Returns True for a status of DEFECTS, with or without the service's reason, that no broken connection made."""
    status, _, reason = how.partition(" ")
    return status in DEFECTS and (bool(reason) or BROKEN_CONNECTION.fullmatch(message) is None)
