"""Claims turns, and runs each under a lease: calls the model, runs tools, stores what the rules decide."""
