"""Who created a session: the same request, or another."""

from datetime import UTC, datetime

import pytest

from turnkeeper.domain.session import Session, SessionState
from turnkeeper.errors import RequestIdReused, SessionAlreadyExists

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SESSION = Session(
    id="s1",
    tenant="t1",
    owner="ann",
    agent="clerk",
    agent_version="v1",
    state=SessionState.CREATED,
    fingerprint="first",
    create_time=NOON,
    update_time=NOON,
)


def test_the_same_request_of_the_same_principal_created_the_session() -> None:
    SESSION.check_created_by("ann", fingerprint="first")
    SESSION.check_created_by("ann", fingerprint="first", derived_from="r1")


@pytest.mark.parametrize(("principal", "fingerprint"), [("ann", "second"), ("bob", "first")])
def test_another_request_did_not(principal: str, fingerprint: str) -> None:
    with pytest.raises(SessionAlreadyExists) as named:
        SESSION.check_created_by(principal, fingerprint=fingerprint)
    assert named.value.session_id == "s1"
    with pytest.raises(RequestIdReused) as derived:
        SESSION.check_created_by(principal, fingerprint=fingerprint, derived_from="r1")
    assert derived.value.metadata == {"request_id": "r1"}
