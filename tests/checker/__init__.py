"""Is what the database holds what its logs say? A check for after a test, or after a run full of faults (I11)."""
