"""Checks that no session is bricked."""

from tests.chaos.history import Finding, History


def the_next_message_works(history: History) -> Finding:
    """Falsified by a session in which the message after all faults has no answer."""
    finding = Finding()
    for line in history.next_messages:
        words = f"{line['session']}: the next message is {line['state'] or 'without an end'} (turn {line['turn']})"
        finding.expect(line["state"] == "COMPLETED", words)
    return finding
