"""`make chaos-crowd`: a thousand clients killed in mid-turn, ten thousand idle streams."""
