"""Starts a server for each module of tests, as for the end-to-end tests. `make test-faults` runs this folder alone."""

from tests.e2e.conftest import env, tool_control

__all__ = ["env", "tool_control"]
