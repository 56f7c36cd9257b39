"""The product on real parts: a tour that checks itself, `make demo`."""
