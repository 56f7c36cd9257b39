"""The product on real parts: a tour that checks itself (`make demo`), and the parts left running (`make run`)."""
