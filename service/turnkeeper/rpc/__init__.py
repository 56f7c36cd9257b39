"""The wire: decode, one verb, encode."""
