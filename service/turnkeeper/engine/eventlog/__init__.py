"""Writes decisions into a session's event log, and caches what this replica knows of it. Decides nothing itself."""
