"""The audit trail: seals are signed and checked here, and a trail is exported."""
