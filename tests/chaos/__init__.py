"""`make chaos`: the promises under faults, on real parts. Clients record what they receive; a checker judges later."""
