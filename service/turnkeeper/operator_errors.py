"""The errors of what an operator does, and of what its freezes refuse: a part of `errors.py`, which is full."""

from turnkeeper.codes import Code
from turnkeeper.errors import FailedPrecondition, Unavailable


class AdmissionFrozen(Unavailable):
    """The operator takes no new work now, for this tenant or agent; send the same call again after the given delay."""

    code = Code.ADMISSION_FROZEN


class TurnCountMismatch(FailedPrecondition):
    """Another number of turns matches than expected; look at them again, and send the number of the metadata."""

    code = Code.TURN_COUNT_MISMATCH
