"""Checks after a test, or after a run full of faults, that documents equal the fold of their logs (I11)."""
