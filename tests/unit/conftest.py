"""Unit tests open no socket and are the same in every run."""

from hypothesis import settings

settings.register_profile("unit", max_examples=40, deadline=None, derandomize=True, database=None)
settings.load_profile("unit")
