"""The store: its contract by role, the values in it, and the adapter for MongoDB."""
