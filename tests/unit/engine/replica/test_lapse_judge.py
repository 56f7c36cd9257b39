"""When a replica takes leases of others for lapsed: not after the database was silent, nor by a clock that jumped."""

import time
from datetime import datetime, timedelta

import pytest

from tests.builders import NOON
from turnkeeper.engine.replica.lapse_judge import NONE_LAPSED, LapseJudge

LEASE = 8.0
"""Seconds: heartbeats come every 2 s, over 4.8 s are a silence, 6 s without judging follow, 1 s is a jump."""


class Scene:
    """A judge and the two clocks: the database's, and the replica's own."""

    def __init__(self, patch: pytest.MonkeyPatch, *, lease: float = LEASE) -> None:
        self.own = 1000.0
        self.database = NOON
        patch.setattr(time, "clock_gettime", lambda _: self.own)
        self.judge = LapseJudge(lease=timedelta(seconds=lease))

    def passes(self, seconds: float) -> None:
        self.own += seconds
        self.database += timedelta(seconds=seconds)

    def heartbeat(self, *, takes: float = 0.0) -> None:
        """One that is answered so many seconds after it was sent."""
        sent_at = self.own
        self.passes(takes / 2)
        at = self.database
        self.passes(takes / 2)
        self.judge.record(at, sent_at=sent_at)

    def heartbeats(self, *, seconds: float) -> None:
        for _ in range(int(seconds / 2)):
            self.passes(2)
            self.heartbeat()

    def lapsed_by(self) -> datetime:
        return self.judge.lapsed_by()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    """One whose judge knows that the database has answered for long enough."""
    scene = Scene(monkeypatch)
    scene.heartbeat()
    scene.heartbeats(seconds=6)
    return scene


def test_a_replica_that_has_just_started_judges_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    assert scene.lapsed_by() == NONE_LAPSED
    scene.heartbeat()
    scene.heartbeats(seconds=4)
    assert scene.lapsed_by() == NONE_LAPSED
    scene.heartbeats(seconds=2)
    assert scene.lapsed_by() == scene.database


def test_leases_are_judged_by_the_last_heartbeat_and_the_replicas_own_clock(scene: Scene) -> None:
    scene.passes(3)
    assert scene.lapsed_by() == scene.database
    scene.heartbeat(takes=1)
    assert scene.lapsed_by() == scene.database + timedelta(seconds=0.5), "never earlier than the database's clock"


def test_while_the_database_is_silent_no_lease_is_judged(scene: Scene) -> None:
    scene.passes(4.7)
    assert scene.lapsed_by() != NONE_LAPSED
    scene.passes(0.2)
    assert scene.lapsed_by() == NONE_LAPSED


@pytest.mark.parametrize("takes", [0.0, 12.0])
def test_after_a_silence_owners_renew_first(scene: Scene, takes: float) -> None:
    """Whether the heartbeat was sent after the silence, or waited for its end."""
    scene.passes(12 - takes)
    scene.heartbeat(takes=takes)
    assert scene.lapsed_by() == NONE_LAPSED
    scene.heartbeats(seconds=4)
    assert scene.lapsed_by() == NONE_LAPSED
    scene.heartbeats(seconds=2)
    assert scene.lapsed_by() == scene.database


def test_a_process_that_was_stopped_judges_as_after_a_silence(scene: Scene) -> None:
    """To it, it is one. The heartbeat that it had sent before is answered when it goes on."""
    sent_at, at = scene.own, scene.database
    scene.passes(12)
    scene.judge.record(at, sent_at=sent_at)
    assert scene.lapsed_by() == NONE_LAPSED


def test_a_database_clock_that_jumps_makes_no_lease_lapse(scene: Scene) -> None:
    before = scene.database
    scene.database += timedelta(seconds=30)
    assert scene.lapsed_by() == before, "a lease of a living owner lapses after that"
    scene.heartbeats(seconds=2)
    assert scene.lapsed_by() == NONE_LAPSED, "owners renew by the new clock first"
    scene.heartbeats(seconds=6)
    assert scene.lapsed_by() == scene.database


def test_a_clock_that_goes_back_delays_and_no_more(scene: Scene) -> None:
    scene.database -= timedelta(seconds=30)
    scene.heartbeats(seconds=2)
    assert scene.lapsed_by() == scene.database


def test_a_short_pause_of_a_busy_machine_is_no_silence_however_short_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, lease=1)
    scene.heartbeat()
    scene.passes(1.9)
    assert scene.lapsed_by() == scene.database
