"""A request's record, and its repeats."""

import pytest

from turnkeeper.errors import RequestIdReused
from turnkeeper.store.changeset import RequestKey, RequestRecord

KEY = RequestKey(tenant="t1", session_id="s1", principal="ann", family="message", request_id="r1")
RECORD = RequestRecord(key=KEY, fingerprint="first", turn_id="turn", sequence=3)


def test_a_repeat_has_the_fingerprint_of_the_record() -> None:
    RECORD.check_same("first")


def test_another_request_with_the_same_id_is_refused() -> None:
    with pytest.raises(RequestIdReused) as refused:
        RECORD.check_same("second")
    assert (refused.value.session_id, refused.value.metadata) == ("s1", {"request_id": "r1"})
