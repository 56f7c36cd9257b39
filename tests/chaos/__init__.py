"""`make chaos`: the promises under faults, on real parts. Clients write down what they see; a checker judges later."""
