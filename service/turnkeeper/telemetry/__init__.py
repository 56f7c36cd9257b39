"""Metrics, spans and logs: what the service measures and reports. Nothing here decides anything.

`metrics` has a method for each event that is counted, `spans` one for each kind of work that is traced, `setup` starts
the exporters. docs/reference/telemetry.md lists every instrument, span and log field.
"""
