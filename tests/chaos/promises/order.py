"""Checks the order of the log, and the events of readers: I1, I2, I4."""

from collections.abc import Iterator, Sequence

from tests.chaos.history import Chain, Finding, History, Logged


def i1_numbers_have_no_gap(history: History) -> Finding:
    """Falsified by a log whose numbers are not 1..n, each once, or by a head that has another n."""
    finding = Finding()
    for session, log in history.logs.items():
        for place, event in enumerate(log, 1):
            finding.expect(event.sequence == place, f"{session}: event {event.sequence} stands at place {place}")
        head = history.heads.get(session)
        last = head["last_seq"] if head else None
        finding.expect(last == len(log), f"{session}: the head has {last}, the log ends at {len(log)}")
    return finding


def i2_readers_are_given_the_log(history: History) -> Finding:
    """Falsified by a reader who, over its streams, was given anything but the stored events behind its start: one
    left out, repeated, out of order or with other bytes, or one that was reported as delivered and never came.
    """
    finding = Finding()
    for chain in history.chains:
        _follow(chain, history, finding)
    return finding


def _follow(chain: Chain, history: History, finding: Finding) -> None:
    who = f"{chain.session}: reader {chain.number}"
    expected = iter(_stored_for(chain, history))
    last = chain.after
    for number, kind, hash_, *_ in (item for item in chain.items if item[0]):
        stored = next(expected, None)
        if stored is None or stored.sequence != number:
            behind = stored.sequence if stored else "no more"
            finding.expect(False, f"{who} was given event {number} ({kind}) after {last}, stored is {behind}")
            return
        finding.expect(stored.hash == hash_, f"{who} was given other bytes of event {number} ({kind})")
        last = number
    missed = next(expected, None)
    if missed is not None and missed.sequence <= chain.through:
        finding.expect(False, f"{who} got `through` {chain.through}, and never event {missed.sequence}")


def _stored_for(chain: Chain, history: History) -> Iterator[Logged]:
    """Returns the stored events that the reader should have received."""
    log: Sequence[Logged] = history.logs.get(chain.session, ())
    turn = next((item[3] for item in chain.items if item[0]), "") if chain.request else ""
    for event in log:
        if event.sequence > chain.after and (not chain.request or event.turn == turn):
            yield event


def i4_fences_never_fall(history: History) -> Finding:
    """Falsified by an event under a lower fence than one before it in its log, by a head below its log, or by an
    event of an earlier attempt after one of a later attempt of the same turn: then two owners wrote.
    """
    finding = Finding()
    for session, log in history.logs.items():
        fence, attempts = 0, dict[str, int]()
        for event in log:
            finding.expect(
                event.fence >= fence, f"{session}: event {event.sequence} is under fence {event.fence}, after {fence}"
            )
            attempt, highest = event.event.attempt, attempts.get(event.turn, 0)
            if event.turn and attempt < highest:
                finding.expect(
                    False, f"{session}: event {event.sequence} is of attempt {attempt} of {event.turn}, after {highest}"
                )
            fence, attempts[event.turn] = max(fence, event.fence), max(highest, attempt)
        head = history.heads.get(session, {}).get("fence", fence)
        finding.expect(head >= fence, f"{session}: the head's fence is {head}, its log's {fence}")
    return finding
