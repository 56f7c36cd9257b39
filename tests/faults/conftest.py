"""Has the tests' tools for the servers that tests start. `make test-faults` runs this folder alone."""

from tests.e2e.conftest import tool_control

__all__ = ["tool_control"]
