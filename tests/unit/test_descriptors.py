"""How many connections clients may have, and which errors come from a lack of descriptors."""

import errno
import socket

import pytest

from turnkeeper import descriptors
from turnkeeper.descriptors import CLIENTS_SHARE, MOST, connections, is_lack, needed


@pytest.mark.parametrize(
    ("limit", "models", "count"),
    [
        (20_000, 64, 20_000 - needed(models=64)),
        (512, 64, 512 - needed(models=64)),
        (256, 64, 256 // CLIENTS_SHARE),
        (1024, 1024, 1024 // CLIENTS_SHARE),
        (4, 1, 1),
        (1 << 40, 64, 1 << 37),
    ],
)
def test_clients_have_what_is_left_and_an_eighth_at_least(limit: int, models: int, count: int) -> None:
    assert connections(min(limit, MOST), models=models) == min(count, MOST - needed(models=models))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_lack_of_descriptors_is_ours(number: int) -> None:
    assert is_lack(OSError(number, "too many open files"))


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError(errno.ECONNREFUSED, "refused"), TimeoutError(), socket.gaierror(-2, "unknown"), OSError()],
)
def test_other_errors_are_the_peers(error: Exception) -> None:
    assert not is_lack(error)


def test_the_limit_is_one_that_the_process_has() -> None:
    assert 0 < descriptors.limit() <= MOST
