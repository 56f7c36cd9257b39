"""The rules: decisions on values, each collected in a unit of work. No I/O, no clock, no randomness, no telemetry."""
