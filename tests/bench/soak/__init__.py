"""`make soak MINUTES=30`: what grows, under mixed load on three replicas."""
